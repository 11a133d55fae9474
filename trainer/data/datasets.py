"""From files and options to the sessions that a model is trained and evaluated on."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from schemas.click_files.options import ReadOptions
from schemas.click_files.read import ClickLog, FileRead, read_log
from schemas.errors import ClickFileError
from trainer.data.preprocessing import collapse_repeats, core
from trainer.data.sessions import SessionSet, drop_short, encode, group_sessions, temporal_holdout, train_and_test
from trainer.errors import TooFewSessionsError

_DAY_MS = 86_400_000
_MINUTE_MS = 60_000


@dataclass(frozen=True)
class DataOptions:
    """Where the clicks are and how they become sessions.

    ``train`` and ``test`` are files, each read in this order as one log.

    Without ``test`` the newest sessions of ``train`` are held out: those of the last ``valid_days``, or else the last
    ``valid_fraction``. With ``test_fraction`` those after the held-out ones are set aside: 0.1 and 0.2 are the split
    70/10/20, of which ``part`` says what to evaluate on. ``idle_gap_minutes`` None: a session id is one session, but
    in formats that only know visitors an hour ends it. With ``test_days`` the sessions of the last days are set aside
    likewise, before anything is held out.

    With ``holdout`` the newest sessions of what is left to train on are held out once more, as many days or as great a
    share: for early stopping, which must not see those of the evaluation.

    The papers also filter the whole log before it is split: ``collapse_repeats`` keeps one of several clicks in a row
    on an item; ``core_support`` drops items with fewer clicks and sessions of one click until none is left.
    """

    train: Sequence[Path]
    test: Sequence[Path] = ()
    valid_fraction: float = 0.1
    valid_days: float | None = None
    idle_gap_minutes: float | None = None
    min_support: int = 1
    reading: ReadOptions = field(default_factory=ReadOptions)
    collapse_repeats: bool = False
    core_support: int = 1
    test_fraction: float = 0.0
    test_days: float | None = None
    holdout: bool = False
    part: Literal["valid", "test"] = "valid"


@dataclass(frozen=True)
class Dataset:
    """Sessions in the vocabulary of the training part, and what was found in the files."""

    train: SessionSet
    test: SessionSet
    files: tuple[FileRead, ...]
    holdout: SessionSet | None = None


def load(options: DataOptions) -> Dataset:
    """Raises :class:`ClickFileError` and :class:`TooFewSessionsError`."""
    train, files = _sessions(options.train, options)
    if options.test:
        test, of_test = _sessions(options.test, options)
        files += of_test
    else:
        train, test = _split(train, options)
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


def _sessions(paths: Sequence[Path], options: DataOptions) -> tuple[SessionSet, tuple[FileRead, ...]]:
    """The sessions of the files, filtered, and what was found in each file."""
    log = read_log(paths, options.reading)
    form = log.files[0].layout.form
    gap = form.idle_gap_minutes if options.idle_gap_minutes is None else options.idle_gap_minutes
    sessions = drop_short(_grouped(paths[0], log, gap))
    if options.collapse_repeats:
        sessions = collapse_repeats(sessions)
    if options.core_support > 1:
        sessions = core(sessions, options.core_support)
    return sessions, log.files


def _grouped(path: Path, log: ClickLog, gap_minutes: float | None) -> SessionSet:
    if gap_minutes is None:
        return group_sessions(log)
    if log.timestamp is None:
        raise ClickFileError(f"{path}: has no timestamps to find idle gaps by: leave the idle gap out")
    return group_sessions(log, idle_gap_ms=round(gap_minutes * _MINUTE_MS))
