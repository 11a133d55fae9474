"""`trainer run`: collect, and every so often a cycle; until it is told to stop, or fails too often."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import structlog
from confluent_kafka import KafkaException

from schemas.errors import SchemaError
from trainer.data.click_log_lock import keeping_files
from trainer.errors import CycleError, LeaseError, StopRequested, TrainerError
from trainer.service.assembly import championship_of, collector_of, registry_of
from trainer.service.click_log import ClickLogFolder
from trainer.service.collect import Collected, Collector
from trainer.service.collect_group import OthersCollect
from trainer.service.cycle import Cycle, CycleResult, Progress
from trainer.service.lease import Lease
from trainer.service.outage import sleep, waiting_out
from trainer.service.refresh import Refresh
from trainer.service.settings import TrainerRoot
from trainer.training.device import Hardware

log = structlog.get_logger(__name__)

_TOLD_IN_A_LINE: Final = (TrainerError, SchemaError, KafkaException, OSError, pa.ArrowException, MemoryError)
"""Failures whose message says it all. Any other one is a fault in the program: the log gets its traceback too."""
_RETRY_SECONDS: Final = 10.0

Work = Cycle | Refresh
"""What is done once the new clicks are collected."""


def run(
    root: TrainerRoot,
    *,
    once: bool,
    stopping: Callable[[], bool],
    progress: Progress = lambda _phase, _done, _total: None,
    refreshing: bool = False,
) -> CycleResult | None:
    """Run cycles; returns the last one's result, None when stopped before there was one.

    Between cycles the champion is refreshed every `trainer.refresh_every` seconds; with ``refreshing`` that is all that
    is done, and nothing is trained.

    Collecting goes on all the time, also during a cycle: that trains on what was there when it began. A failed cycle is
    logged and the next one tries again, but after `trainer.max_failures` in a row, or with `once`, its error is raised:
    a TrainerError or SchemaError, whatever it was at first. While Kafka does not answer a cycle waits
    (`trainer.service.outage`). Raises LeaseError, at once, when another trainer publishes the same alias in the same
    registry.
    """
    result: CycleResult | None = None
    failures = 0
    settings = root.trainer
    every = (settings.refresh_every if refreshing else 0.0) or settings.every
    with _trainer(root, stopping, progress) as trainer:
        while trainer is not None and not stopping():
            due = time.monotonic() + every
            try:
                result = trainer.collect_and(trainer.refresh if refreshing else trainer.cycle)
                failures = 0
            except StopRequested:
                log.info("stopped during a cycle; nothing was published, the next start begins it anew")
                break
            except LeaseError:
                raise
            except Exception as error:
                failures += 1
                if once or failures >= settings.max_failures:
                    raise _told(error) from error
                _log_failure("cycle failed; the next one tries again", error, in_a_row=failures)
            if once:
                break
            log.info("next refresh" if refreshing else "next cycle", seconds=round(max(0.0, due - time.monotonic()), 1))
            trainer.wait(due, refresh_every=0.0 if refreshing else settings.refresh_every)
    return result


@dataclass(frozen=True)
class _Trainer:
    """A trainer that holds its lease, collecting."""

    folder: ClickLogFolder
    collector: Collector | OthersCollect
    cycle: Cycle
    refresh: Refresh
    stopping: Callable[[], bool]

    def collect_and(self, work: Work) -> CycleResult:
        result = waiting_out(lambda: _collect_and_run(self.folder, self.collector, work, self.stopping), self.stopping)
        # Apart from it: what is done and told is not done again because Kafka goes away afterwards.
        with suppress(StopRequested):
            waiting_out(self.cycle.tidy, self.stopping)
        return result

    def wait(self, due: float, *, refresh_every: float) -> None:
        """Collect until then, and refresh; what fails is tried again by the next one, and the cycle decides whether
        the process goes on."""
        while refresh_every and time.monotonic() + refresh_every < due and not self.stopping():
            _collect_until(time.monotonic() + refresh_every, self.collector, self.stopping)
            try:
                self.collect_and(self.refresh)
            except StopRequested:
                return
            except LeaseError:
                raise
            except Exception as error:  # noqa: BLE001 - the loop's edge
                _log_failure("refresh failed; the next one tries again", error)
        _collect_until(due, self.collector, self.stopping)


@contextmanager
def _trainer(root: TrainerRoot, stopping: Callable[[], bool], progress: Progress) -> Iterator[_Trainer | None]:
    """None when it was stopped before it had the lease."""
    settings = root.trainer
    hardware = Hardware(settings.threads, settings.device).set_up()
    folder = ClickLogFolder(settings.log_dir)
    with ExitStack() as held:
        group = settings.collect_group
        held.enter_context(folder.shared(trainer=True) if group else folder.locked())
        registry = registry_of(root, folder.writer())
        lease = Lease(registry.store, settings.model_alias, registry.writer, stopping=stopping)
        try:
            held.enter_context(lease)
        except StopRequested:
            yield None
            return
        collector: Collector | OthersCollect = (
            OthersCollect() if group else collector_of(root, folder, stopping=stopping)
        )
        held.enter_context(collector)

        def watched(phase: str, done: int, total: int) -> None:
            if stopping():
                raise StopRequested
            lease.raise_if_lost()
            progress(phase, done, total)

        championship = championship_of(root, registry)
        cycle = Cycle(root, folder, registry, championship, watched, may_write=lease.check, hardware=hardware)
        refresh = Refresh(root, folder, registry, championship, may_write=lease.check)
        yield _Trainer(folder, collector, cycle, refresh, stopping)


def _collect_and_run(
    folder: ClickLogFolder,
    collector: Collector | OthersCollect,
    work: Work,
    stopping: Callable[[], bool],
) -> CycleResult:
    _tell_collected(collector.collect_to_end(stopping))
    if stopping():
        raise StopRequested
    began = time.monotonic()
    with keeping_files(folder.folder):
        collected = folder.scan()
        with _collecting(collector):
            result = work.run(collected)
    log.info(
        f"{work.name} {result.outcome}", version=result.version, reasons=list(result.reasons),
        seconds=round(time.monotonic() - began, 1),
    )  # fmt: skip
    return result


def _collect_until(due: float, collector: Collector | OthersCollect, stopping: Callable[[], bool]) -> None:
    """Collect until a cycle is due. What fails meanwhile is tried again: the cycle decides whether it goes on."""
    while not stopping() and time.monotonic() < due:
        try:
            _tell_collected(collector.collect_until(lambda: stopping() or time.monotonic() >= due))
        except Exception as error:  # noqa: BLE001 - the loop's edge
            _log_failure("collecting failed; trying again", error)
            try:
                sleep(min(_RETRY_SECONDS, due - time.monotonic()), stopping)
            except StopRequested:
                return


def _told(error: Exception) -> Exception:
    """The error in one line for whoever started the program."""
    if isinstance(error, TrainerError | SchemaError):
        return error
    cause = error.args[0].str() if isinstance(error, KafkaException) else str(error)
    return CycleError(f"a cycle failed: {type(error).__name__}: {cause}")


def _log_failure(event: str, error: Exception, **fields: int) -> None:
    log.error(event, error=str(_told(error)), exc_info=not isinstance(error, _TOLD_IN_A_LINE), **fields)


@contextmanager
def _collecting(collector: Collector | OthersCollect) -> Iterator[None]:
    """Collect in a thread of its own meanwhile: a cycle may take longer than the topic keeps clicks."""
    over = threading.Event()
    with ThreadPoolExecutor(1, "collect") as pool:
        collecting = pool.submit(_collect_until, math.inf, collector, over.is_set)
        try:
            yield
        finally:
            over.set()
            collecting.result()


def _tell_collected(collected: Collected) -> None:
    if collected.clicks or collected.rejected or collected.lost:
        log.info(
            "collected", clicks=collected.clicks, rejected=dict(collected.rejected), lost=collected.lost,
            files=collected.files,
        )  # fmt: skip
