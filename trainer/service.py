"""`trainer run`: collect, and every so often a cycle; until it is told to stop, or fails too often."""

import time
from collections.abc import Callable

import structlog

from schemas.errors import SchemaError
from trainer.assembly import championship_of, collector_of, registry_of
from trainer.click_log import ClickLogFolder
from trainer.collect import Collected
from trainer.cycle import Cycle, CycleResult, Progress
from trainer.device import use_device
from trainer.engine import use_threads
from trainer.errors import TrainerError
from trainer.service_errors import StopRequested
from trainer.service_settings import TrainerRoot

log = structlog.get_logger(__name__)


def run(
    root: TrainerRoot,
    *,
    once: bool,
    stopping: Callable[[], bool],
    progress: Progress = lambda _phase, _done, _total: None,
) -> CycleResult | None:
    """Run cycles; returns the last one's result, None when stopped before there was one.

    Collecting goes on between cycles. A failed cycle is logged and the next one tries again, but after
    `trainer.max_failures` in a row, or with `once`, its error is raised.
    """
    settings = root.trainer
    use_threads(settings.threads)
    use_device(settings.device)

    def watched(phase: str, done: int, total: int) -> None:
        if stopping():
            raise StopRequested
        progress(phase, done, total)

    folder = ClickLogFolder(settings.log_dir)
    result: CycleResult | None = None
    failures = 0
    with folder.locked(), collector_of(root, folder) as collector:
        registry = registry_of(root, folder.writer())
        cycle = Cycle(root, folder, registry, championship_of(root, registry), watched)
        cycle.recover()
        while not stopping():
            due = time.monotonic() + settings.every
            _tell_collected(collector.collect_to_end(stopping))
            try:
                if stopping():
                    break
                result = _run_once(cycle)
                failures = 0
            except StopRequested:
                log.info("stopped during a cycle; nothing was published, the next start begins it anew")
                break
            except (TrainerError, SchemaError) as error:
                failures += 1
                if once or failures >= settings.max_failures:
                    raise
                log.error("cycle failed; the next one tries again", error=str(error), in_a_row=failures)
            if once:
                break
            log.info("next cycle", seconds=round(max(0.0, due - time.monotonic()), 1))
            _tell_collected(collector.collect_until(lambda: stopping() or time.monotonic() >= due))  # noqa: B023
    return result


def _run_once(cycle: Cycle) -> CycleResult:
    began = time.monotonic()
    result = cycle.run()
    log.info(
        f"cycle {result.outcome}", version=result.version, reasons=list(result.reasons),
        seconds=round(time.monotonic() - began, 1),
    )  # fmt: skip
    cycle.tidy()
    return result


def _tell_collected(collected: Collected) -> None:
    if collected.clicks or collected.rejected or collected.lost:
        log.info(
            "collected", clicks=collected.clicks, rejected=dict(collected.rejected), lost=collected.lost,
            files=collected.files,
        )  # fmt: skip
