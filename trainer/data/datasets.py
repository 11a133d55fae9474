"""From files and options to the sessions that a model is trained and evaluated on."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from schemas.click_files.read import ClickLog, FileRead, read_log
from schemas.errors import ClickFileError
from trainer.data.click_log_lock import keeping_files
from trainer.data.options import DataOptions
from trainer.data.preprocessing import collapse_repeats, core
from trainer.data.sessions import (
    SessionSet,
    drop_short,
    encode,
    group_sessions,
    newest_share,
    temporal_holdout,
    train_and_test,
)
from trainer.errors import TooFewSessionsError

_DAY_MS = 86_400_000
_MINUTE_MS = 60_000


@dataclass(frozen=True)
class Dataset:
    """Sessions in the vocabulary of the training part, and what was found in the files."""

    train: SessionSet
    test: SessionSet
    files: tuple[FileRead, ...]
    holdout: SessionSet | None = None


def load(options: DataOptions) -> Dataset:
    """Raises :class:`ClickFileError` and :class:`TooFewSessionsError`."""
    train, files = read_sessions(options.train, options)
    if options.test:
        test, of_test = read_sessions(options.test, options)
        files += of_test
    else:
        train, test = _split(train, options)
    if options.train_share < 1:
        train = newest_share(train, options.train_share)
    newest = None
    if options.holdout:
        train, newest = _newest(train, options)
    train, test = train_and_test(train, test, min_support=options.min_support)
    if newest is not None:
        newest = encode(newest, train.item_ids)
        if not len(newest):
            raise TooFewSessionsError("no session of the holdout has two clicks on items of the vocabulary")
    return Dataset(train, test, files, newest)


def _newest(sessions: SessionSet, options: DataOptions) -> tuple[SessionSet, SessionSet]:
    if options.valid_days is not None:
        return _last_days(sessions, options.valid_days, options)
    return temporal_holdout(sessions, fraction=options.valid_fraction)


def _last_days(sessions: SessionSet, days: float, options: DataOptions) -> tuple[SessionSet, SessionSet]:
    if not sessions.timed:
        path = options.train[0]  # all of them have times, or none
        raise ClickFileError(f"{path}: has no timestamps to hold out days by: name a fraction, or a test file")
    return temporal_holdout(sessions, duration_ms=round(days * _DAY_MS))


def _split(sessions: SessionSet, options: DataOptions) -> tuple[SessionSet, SessionSet]:
    """What is trained on, and what is evaluated on; the model of either part learns from the same sessions."""
    if options.test_days is not None:
        older, test = _last_days(sessions, options.test_days, options)
    elif options.test_fraction:
        older, test = temporal_holdout(sessions, fraction=options.test_fraction)
    else:
        return _newest(sessions, options)
    if options.valid_days is None and options.test_days is None:
        # Both fractions are of all sessions.
        share = options.valid_fraction / (1 - options.test_fraction)
        train, valid = temporal_holdout(older, fraction=share)
    else:
        train, valid = _newest(older, options)
    return train, valid if options.part == "valid" else test


def read_sessions(paths: Sequence[Path], options: DataOptions) -> tuple[SessionSet, tuple[FileRead, ...]]:
    """The sessions of the files, filtered, and what was found in each file.

    Raises :class:`ClickFileError` and :class:`TooFewSessionsError`.
    """
    with ExitStack() as kept:
        for path in paths:
            kept.enter_context(keeping_files(path))
        log = read_log(paths, options.reading)
    form = log.files[0].layout.form
    gap = form.idle_gap_minutes if options.idle_gap is None else options.idle_gap
    sessions = drop_short(_grouped(paths[0], log, gap))
    if options.collapse_repeats:
        sessions = collapse_repeats(sessions)
    if options.core > 1:
        sessions = core(sessions, options.core)
    return sessions, log.files


def _grouped(path: Path, log: ClickLog, gap_minutes: float | None) -> SessionSet:
    if gap_minutes is None:
        return group_sessions(log)
    if log.timestamp is None:
        raise ClickFileError(f"{path}: has no timestamps to find idle gaps by: leave the idle gap out")
    return group_sessions(log, idle_gap_ms=round(gap_minutes * _MINUTE_MS))
