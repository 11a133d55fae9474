"""The loop of `trainer run` with cycles and a collector that are played: what is a failure, and what is waited out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import structlog
from confluent_kafka import KafkaError, KafkaException

from schemas.errors import BundleError
from trainer.errors import ClickLogError, CycleError, KafkaAwayError, LeaseError, TrainerError
from trainer.service import loop as service
from trainer.service.click_log import LogState
from trainer.service.collect import Collected
from trainer.service.cycle import CycleResult
from trainer.service.lease import Lease
from trainer.service.settings import TrainerRoot, TrainerSettings
from trainer.service.store import Store

SKIPPED = CycleResult("skipped", ("nothing new",))
AWAY = KafkaAwayError("Kafka is away")


class Played:
    """Collector and cycle at once: answers one after the other, an error being raised; then all goes well."""

    name = "cycle"

    def __init__(
        self, cycles: list[Any], collecting: list[Any], between: list[Any], refreshes: Sequence[Any] = ()
    ) -> None:
        self.answers = {
            "cycle": iter(cycles), "collect": iter(collecting), "between": iter(between), "refresh": iter(refreshes),
        }  # fmt: skip
        self.tidying: Iterator[Any] = iter(())
        self.told: list[str] = []
        self.logs: list[Any] = []

    def __enter__(self) -> "Played":
        return self

    def __exit__(self, *_: object) -> None: ...

    def collect_to_end(self, _stop: Callable[[], bool]) -> Collected:
        self._answer("collect")
        return Collected()

    def collect_until(self, stop: Callable[[], bool]) -> Collected:
        self._answer("between")
        while not stop():
            pass
        return Collected()

    def run(self, _collected: LogState) -> CycleResult:
        self._answer("cycle")
        return SKIPPED

    def tidy(self) -> None:
        if (answer := next(self.tidying, None)) is not None:
            raise answer

    def _answer(self, what: str) -> None:
        self.told.append(what)
        answer = next(self.answers[what], None)
        if answer is not None:
            raise answer


class PlayedRefresh:
    """In the place of a refresh; asks the one that is played."""

    name = "refresh"

    def __init__(self, played: Played) -> None:
        self._played = played

    def run(self, _collected: LogState) -> CycleResult:
        self._played._answer("refresh")
        return SKIPPED


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Played]:
    """Run the loop until the cycles have given their answers and one more, or there were so many refreshes."""
    monkeypatch.setattr("trainer.service.lease._SETTLE_SECONDS", 0.0)
    monkeypatch.setattr("trainer.service.outage.time.sleep", lambda _: None)
    monkeypatch.setattr("trainer.service.outage._LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(service, "_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(service, "_collecting", nullcontext)  # or what is asked of whom would be a matter of luck

    def run(
        cycles: list[Any], collecting: Sequence[Any] = (), between: Sequence[Any] = (), *, once: bool = False,
        refreshes: Sequence[Any] = (), tidying: Sequence[Any] = (), refreshing: bool = False, stop_at: int = 0,
        **settings: Any,
    ) -> Played:  # fmt: skip
        played = Played(cycles, list(collecting), list(between), refreshes)
        played.tidying = iter(tidying)
        monkeypatch.setattr(service, "collector_of", lambda *_, **__: played)
        monkeypatch.setattr(service, "Cycle", lambda *_, **__: played)
        monkeypatch.setattr(service, "Refresh", lambda *_, **__: PlayedRefresh(played))
        trainer = TrainerSettings(
            log_dir=tmp_path / "log", registry=str(tmp_path / "registry"), work_dir=tmp_path / "work", device="cpu",
            **{"every": 0.01, **settings},
        )  # fmt: skip
        wanted = len(cycles) + 1
        counted, wanted = ("refresh", stop_at) if stop_at else ("cycle", wanted)
        stopping = lambda: not once and played.told.count(counted) >= wanted  # noqa: E731
        with structlog.testing.capture_logs() as played.logs:
            service.run(TrainerRoot(trainer=trainer), once=once, stopping=stopping, refreshing=refreshing)
        return played

    return run


FAILURES = [
    BundleError("a model ranks too few items"),
    ClickLogError("a file is missing"),
    KafkaException(KafkaError(KafkaError._SSL, "no certificate")),
    OSError(28, "No space left on device"),
    pa.ArrowInvalid("corrupt page"),
    MemoryError("cannot allocate 9 GB"),
    RuntimeError("CUDA error"),
    ValueError("a fault in the program"),
]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_whatever_fails_is_a_failure_of_the_cycle(play: Callable[..., Played], error: Exception) -> None:
    played = play(cycles=[error, error, None, error, error], max_failures=3)
    assert played.told.count("cycle") == 6  # a success between them: never three in a row
    with pytest.raises((TrainerError, BundleError)) as ended:
        play(cycles=[error, error, error, None], max_failures=3)
    assert str(ended.value).endswith(error.args[0].str() if isinstance(error, KafkaException) else str(error))


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_a_single_cycle_ends_with_its_error(play: Callable[..., Played], error: Exception) -> None:
    with pytest.raises((TrainerError, BundleError)):
        play(cycles=[error], once=True)


def test_only_faults_of_the_program_are_logged_with_their_traceback(play: Callable[..., Played]) -> None:
    logs = play(cycles=FAILURES, max_failures=100).logs
    failed = [line for line in logs if line["event"].startswith("cycle failed")]
    assert [line["exc_info"] for line in failed] == [False] * 6 + [True] * 2
    assert failed[3]["error"] == "a cycle failed: OSError: [Errno 28] No space left on device"


def test_a_collector_that_fails_is_a_failure_of_the_cycle_too(play: Callable[..., Played]) -> None:
    full = ClickLogError("clicks.parquet: cannot be written: No space left on device")
    played = play(cycles=[], collecting=[full], max_failures=2)
    assert played.told == ["collect", "between", "collect", "cycle"]
    with pytest.raises(ClickLogError, match="No space left"):
        play(cycles=[], collecting=[full, full], max_failures=2)


def test_between_cycles_collecting_is_tried_again_and_is_no_failure(play: Callable[..., Played]) -> None:
    """The cycle decides whether it goes on."""
    full = OSError(28, "No space left on device")
    played = play(cycles=[None], between=[full] * 3, max_failures=1, every=0.5)
    assert played.told[:6] == ["collect", "cycle", "between", "between", "between", "between"]


def test_between_cycles_the_champion_is_refreshed_and_a_failure_of_that_is_none(play: Callable[..., Played]) -> None:
    full = OSError(28, "No space left on device")
    played = play(cycles=[], refreshes=[full, None], max_failures=1, every=60.0, refresh_every=0.01, stop_at=2)
    assert played.told == ["collect", "cycle", *["between", "collect", "refresh"] * 2]
    assert [line["error"] for line in played.logs if line["event"].startswith("refresh failed")] == [
        "a cycle failed: OSError: [Errno 28] No space left on device"
    ]


def test_a_lease_that_is_taken_ends_the_loop_at_a_refresh_too(play: Callable[..., Played]) -> None:
    with pytest.raises(LeaseError):
        play(cycles=[], refreshes=[LeaseError("another trainer")], every=60.0, refresh_every=0.01, stop_at=2)


def test_refreshes_alone_train_nothing(play: Callable[..., Played]) -> None:
    full = OSError(28, "No space left on device")
    played = play(cycles=[], refreshes=[None, full], refreshing=True, refresh_every=0.01, max_failures=2, stop_at=3)
    assert played.told == ["collect", "refresh", "between", "collect", "refresh", "between", "collect", "refresh"]
    with pytest.raises(CycleError, match="No space left"):
        play(cycles=[], refreshes=[full, full], refreshing=True, refresh_every=0.01, max_failures=2, stop_at=3)
    with pytest.raises(CycleError, match="No space left"):
        play(cycles=[], refreshes=[full], refreshing=True, once=True)


def test_an_outage_when_a_cycle_is_due_is_waited_out(play: Callable[..., Played]) -> None:
    played = play(cycles=[None], collecting=[AWAY] * 20, max_failures=1)
    assert played.told[:22] == ["collect"] * 21 + ["cycle"]
    # At the announcement, too: the next try finds what was published, and announces it.
    played = play(cycles=[AWAY, AWAY, None], max_failures=1)
    assert played.told[:6] == ["collect", "cycle"] * 3


def test_an_outage_behind_a_cycle_has_it_not_done_again(play: Callable[..., Played]) -> None:
    """`--once` would tell of the second one, which finds nothing new, and not of what was announced."""
    played = play(cycles=[], tidying=[AWAY, AWAY], once=True)
    assert played.told == ["collect", "cycle"]


def test_an_outage_of_hours_is_a_failure(play: Callable[..., Played], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**9, 100))
    monkeypatch.setattr("trainer.service.outage.time.monotonic", lambda: float(next(clock)))
    with pytest.raises(KafkaAwayError):
        play(cycles=[AWAY] * 100, max_failures=1)


def test_a_lease_that_is_taken_ends_the_loop_at_once(play: Callable[..., Played]) -> None:
    with pytest.raises(LeaseError):
        play(cycles=[LeaseError("another trainer")], max_failures=100)


def test_a_second_trainer_with_another_log_touches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played([], [], [])
    with Lease(Store(str(tmp_path / "registry")), "champion", "another", seconds=0.4):
        monkeypatch.setattr("trainer.service.lease._POLL_SECONDS", 0.01)
        monkeypatch.setattr(service, "collector_of", lambda *_, **__: played)
        trainer = TrainerSettings(log_dir=tmp_path / "log", registry=str(tmp_path / "registry"), device="cpu")
        with pytest.raises(LeaseError, match="another trainer publishes the alias champion here"):
            service.run(TrainerRoot(trainer=trainer), once=True, stopping=lambda: False)
    assert played.told == []


def test_a_cycle_error_is_the_trainer_s_own() -> None:
    assert issubclass(CycleError, TrainerError)
