"""What tests share: a real Kafka for the session, names of one's own on it, and the click files."""

import gc
import os
import re
import signal
import sys
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from hypothesis import HealthCheck, settings
from hypothesis.database import DirectoryBasedExampleDatabase

from deploy.kafka import LocalKafka, LocalKafkaError
from tests.admin import delete_topics_of
from tests.shared_broker import SharedBroker

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
    """The broker that tests talk to.

    Attributes:
        is_named: whether KAFKA_BOOTSTRAP_SERVERS named it: then its settings are not those of `deploy.kafka`.
    """

    bootstrap_servers: str
    is_named: bool = False


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Nothing that is imported or collected becomes garbage: thousands of tests need not be looked through for it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


SHARED_BROKER = pytest.StashKey[SharedBroker]()
OWN_BROKER = pytest.StashKey[LocalKafka]()


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


@contextmanager
def local_kafka(session: pytest.Session, folders: pytest.TempPathFactory) -> Iterator[LocalKafka]:
    """A broker of this process's own, to stop and kill; pytest keeps its logs, those of the last three sessions."""
    with LocalKafka(log_dir=folders.mktemp("kafka-logs")) as local:
        session.stash[OWN_BROKER] = local
        yield local
        del session.stash[OWN_BROKER]


def run_folder(config: pytest.Config, folders: pytest.TempPathFactory) -> Path:
    """What all processes of this run of the tests share."""
    folder = folders.getbasetemp()
    return folder.parent if hasattr(config, "workerinput") else folder


@pytest.fixture(scope="session")
def kafka(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> KafkaUnderTest:
    """The Kafka that KAFKA_BOOTSTRAP_SERVERS names, else a local one of one broker, for the whole test run.

    All processes of pytest-xdist share it: tests take the names of their topics and groups from `topic_prefix`. Those
    that stop or kill a broker use `local_kafka`; those that need more brokers or other settings start a LocalKafka.
    """
    if named := os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        try:
            AdminClient({"bootstrap.servers": named}).list_topics(timeout=10)
        except KafkaException as error:
            pytest.fail(f"KAFKA_BOOTSTRAP_SERVERS={named} does not answer ({error}); unset it to start a local Kafka")
        return KafkaUnderTest(named, is_named=True)
    broker = SharedBroker(run_folder(request.config, tmp_path_factory))
    address = broker.join()
    request.session.stash[SHARED_BROKER] = broker
    return KafkaUnderTest(address)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leave the shared broker. Its owner may have to wait for minutes: too long for the end of a test, or a fixture."""
    if (broker := session.stash.get(SHARED_BROKER, None)) is not None:
        broker.leave()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Have a broker for the next test when the one before left it dead; if that fails, the run ends and says why.

    Without it every later test would wait for minutes for a broker that does not answer. This process's own is started
    again. The shared one is nobody's to kill: a test fails with the end of its log, and others go on with a new one.
    """
    stash = item.session.stash
    gone: str | None = None
    try:
        if (own := stash.get(OWN_BROKER, None)) is not None and not own.running_brokers:
            own.start_broker(0)
        if (shared := stash.get(SHARED_BROKER, None)) is not None and item.get_closest_marker("kafka"):
            gone = shared.replaced()
    except LocalKafkaError as error:
        item.session.shouldfail = f"the Kafka of these tests does not start again: {error}"
        raise
    if gone is not None:
        pytest.fail(gone, pytrace=False)


@pytest.fixture
def topic_prefix(kafka: KafkaUnderTest, request: pytest.FixtureRequest) -> Iterator[str]:
    """A prefix for names of topics and groups that no other test has. Topics that begin with it are deleted after."""
    test = re.sub(r"[^A-Za-z0-9]+", "-", request.node.name).strip("-")[:60]
    prefix = f"{test}-{uuid.uuid4().hex[:8]}"
    yield prefix
    delete_topics_of({"bootstrap.servers": kafka.bootstrap_servers}, prefix)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of click files beside the repository."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the click files of ../shared/data, and there is no {folder}")
    return folder


@pytest.fixture(autouse=True, scope="session")
def shared_traces(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An encoder is traced once a run, not once a process."""
    with pytest.MonkeyPatch.context() as patched:
        if "trainer.export.encoders" in sys.modules:  # else no test here exports, or only in a process of its own
            from tests.shared_traces import share_traces

            share_traces(run_folder(request.config, tmp_path_factory) / "traces", patched)
        yield


@pytest.fixture(autouse=True)
def small_numbers() -> Iterator[None]:
    """A fit lets torch take numbers below 1e-38 for zero, in its whole process; other tests draw such numbers."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
