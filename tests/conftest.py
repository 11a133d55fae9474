"""What tests share: a real Kafka for the session, names of one's own on it, and the click files."""

import fcntl
import gc
import os
import re
import signal
import sys
import uuid
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
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
    """The broker that tests talk to.

    Attributes:
        local: what these tests may stop and kill: only a broker of their own, which `own_kafka` gives them.
        data_dir: its log folders; None where KAFKA_BOOTSTRAP_SERVERS names one.
    """

    bootstrap_servers: str
    local: LocalKafka | None = None
    data_dir: Path | None = None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Nothing that is imported or collected becomes garbage: thousands of tests need not be looked through for it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


OWN_BROKER = pytest.StashKey[LocalKafka | None]()


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


def named_kafka() -> KafkaUnderTest | None:
    """The one of KAFKA_BOOTSTRAP_SERVERS."""
    named = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
    if not named:
        return None
    try:
        AdminClient({"bootstrap.servers": named}).list_topics(timeout=10)
    except KafkaException as error:
        pytest.fail(f"KAFKA_BOOTSTRAP_SERVERS={named} does not answer ({error}); unset it to start a local Kafka")
    return KafkaUnderTest(named)


@contextmanager
def local_kafka(session: pytest.Session, folders: pytest.TempPathFactory) -> Iterator[LocalKafka]:
    """A broker of this process. Its logs outlive the session, where pytest keeps those of the last three."""
    with LocalKafka(log_dir=folders.mktemp("kafka-logs")) as local:
        before = session.stash.get(OWN_BROKER, None)
        session.stash[OWN_BROKER] = local
        yield local
        session.stash[OWN_BROKER] = before


@pytest.fixture(scope="session")
def kafka(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaUnderTest]:
    """The Kafka that KAFKA_BOOTSTRAP_SERVERS names, else a local one of one broker, for the whole test session.

    All processes of pytest-xdist share it: an idle broker takes a twentieth of a core. The first that asks starts it,
    and stops it when no other uses it. Tests take their topic and group names from `topic_prefix`. Those that stop or
    kill it, or need other settings, start one of their own.
    """
    if (named := named_kafka()) is not None:
        yield named
        return
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    address = shared / "kafka.address"
    with (shared / "kafka.lock").open("w") as lock, ExitStack() as stack:
        fcntl.flock(lock, fcntl.LOCK_EX)
        starts = not address.exists()
        if starts:
            local = stack.enter_context(local_kafka(request.session, tmp_path_factory))
            address.write_text(f"{local.bootstrap_servers}\n{local.data_dir}")
        bootstrap_servers, data_dir = address.read_text().split("\n")
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield KafkaUnderTest(bootstrap_servers, data_dir=Path(data_dir))
        if starts:
            fcntl.flock(lock, fcntl.LOCK_EX)  # once all others are done with it
            address.unlink()


@pytest.fixture(scope="module")
def own_kafka(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaUnderTest]:
    """For modules whose tests stop or kill the broker, and start it again: their own, unless one is named."""
    if (named := named_kafka()) is not None:
        yield named
        return
    with local_kafka(request.session, tmp_path_factory) as local:
        yield KafkaUnderTest(local.bootstrap_servers, local, local.data_dir)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Start this process's broker again when the test before left it dead; when that fails, the run ends and says why.

    Without it every later test would wait for minutes for a broker that does not answer.
    """
    local = item.session.stash.get(OWN_BROKER, None)
    if local is None or local.running_brokers:
        return
    try:
        local.start_broker(0)
    except LocalKafkaError as error:
        item.session.shouldfail = f"the Kafka of these tests does not start again: {error}"
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
