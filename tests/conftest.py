"""What tests share: a real Kafka for the session, names of one's own on it, and the click files."""

import gc
import os
import re
import signal
import sys
import uuid
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from hypothesis import HealthCheck, settings
from hypothesis.database import DirectoryBasedExampleDatabase

from deploy.kafka import LocalKafka, LocalKafkaError
from tests.patience import PATIENCE

REPOSITORY = Path(__file__).resolve().parents[1]

# Neither the speed of the machine nor chance decides whether the tests pass: the same examples in every run.
settings.register_profile("tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")
# For a run of its own, `make fuzz`: other examples each time, and more; what failed is tried first the next time.
settings.register_profile(
    "fresh",
    settings.get_profile("tests"),
    derandomize=False,
    database=DirectoryBasedExampleDatabase(REPOSITORY / ".hypothesis" / "examples"),
    max_examples=int(os.environ.get("EXAMPLES", "1000")),
    print_blob=True,
)

# A shell starts its background jobs with Ctrl-C ignored, which the commands under test would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class KafkaUnderTest:
    """The broker that tests talk to."""

    bootstrap_servers: str
    local: LocalKafka | None  # None when KAFKA_BOOTSTRAP_SERVERS named one: then it is not ours to stop or kill


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Nothing that is imported or collected becomes garbage: thousands of tests need not be looked through for it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


SHARED_BROKER = pytest.StashKey[LocalKafka]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever asks for the broker is marked `kafka`, so that `-m "not kafka"` runs without one.

    What compiles for minutes comes first: at the end the other cores would wait for it.
    """
    items.sort(key=lambda item: item.path.parent.name != "compiled")
    for item in items:
        if {"kafka", "topic_prefix"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.kafka)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes do not name a test: gzip writes the time into them, and each pytest-xdist worker would collect its own."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def kafka(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaUnderTest]:
    """The Kafka that KAFKA_BOOTSTRAP_SERVERS names, else a local one of one broker, for the whole test session.

    Tests share it: they take their topic and group names from `topic_prefix`, and whoever stops its broker starts it
    again (after one that did not, `pytest_runtest_setup` does). Tests that need more brokers or other settings start a
    LocalKafka of their own.
    """
    named = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
    if named:
        try:
            AdminClient({"bootstrap.servers": named}).list_topics(timeout=10)
        except KafkaException as error:
            pytest.fail(f"KAFKA_BOOTSTRAP_SERVERS={named} does not answer ({error}); unset it to start a local Kafka")
        yield KafkaUnderTest(named, local=None)
        return
    # The brokers' logs outlive the session, where pytest keeps those of the last three.
    with LocalKafka(log_dir=tmp_path_factory.mktemp("kafka-logs")) as local:
        request.session.stash[SHARED_BROKER] = local
        yield KafkaUnderTest(local.bootstrap_servers, local)
        del request.session.stash[SHARED_BROKER]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Start the shared broker again when the test before left it dead; when that fails, the run ends and says why.

    Without it every later test would wait for minutes for a broker that does not answer.
    """
    local = item.session.stash.get(SHARED_BROKER, None)
    if local is None or local.running_brokers:
        return
    try:
        local.start_broker(0)
    except LocalKafkaError as error:
        item.session.shouldfail = f"the Kafka that tests share does not start again: {error}"
        raise


@pytest.fixture
def topic_prefix(kafka: KafkaUnderTest, request: pytest.FixtureRequest) -> Iterator[str]:
    """A prefix for names of topics and groups that no other test has. Topics that begin with it are deleted after."""
    test = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name).strip("-")[:60]
    prefix = f"{test}-{uuid.uuid4().hex[:8]}"
    yield prefix
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    own = [topic for topic in admin.list_topics(timeout=30).topics if topic.startswith(prefix)]
    if own:
        for deleted in admin.delete_topics(own).values():
            deleted.result(PATIENCE)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of click files beside the repository."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the click files of ../shared/data, and there is no {folder}")
    return folder


@pytest.fixture(autouse=True)
def small_numbers() -> Iterator[None]:
    """A fit lets torch take numbers below 1e-38 for zero, in its whole process; other tests draw such numbers."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
