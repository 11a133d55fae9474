"""From files and options to the sessions that a model is trained and evaluated on."""

from dataclasses import dataclass
from pathlib import Path

from trainer.errors import ClickFileError
from trainer.readers import ClickLog, read_clicks
from trainer.sessions import SessionSet, drop_short, group_sessions, temporal_holdout, train_and_test

_DAY_MS = 86_400_000
_MINUTE_MS = 60_000


@dataclass(frozen=True)
class DataOptions:
    """Where the clicks are and how they become sessions.

    Without ``test`` the newest sessions of ``train`` are held out: those of the last ``valid_days``, or else the last
    ``valid_fraction``. ``idle_gap_minutes`` None: a session id is one session.
    """

    train: Path
    test: Path | None = None
    valid_fraction: float = 0.1
    valid_days: float | None = None
    idle_gap_minutes: float | None = None
    min_support: int = 1
    skip_bad_rows: bool = False


@dataclass(frozen=True)
class Dataset:
    """Sessions in the vocabulary of the training part, and the rows left out, by file."""

    train: SessionSet
    test: SessionSet
    bad_rows: dict[str, int]


def load(options: DataOptions) -> Dataset:
    """Raises :class:`ClickFileError` and :class:`TooFewSessionsError`."""
    log = read_clicks(options.train, skip_bad_rows=options.skip_bad_rows)
    bad_rows = {str(options.train): log.bad_rows}
    train = _sessions(options.train, log, options)
    if options.test is not None:
        log = read_clicks(options.test, skip_bad_rows=options.skip_bad_rows)
        bad_rows[str(options.test)] = log.bad_rows
        test = _sessions(options.test, log, options)
    elif options.valid_days is not None:
        if not train.timed:
            raise ClickFileError(f"{options.train}: has no timestamps to hold out days by: name a fraction instead")
        train, test = temporal_holdout(train, duration_ms=round(options.valid_days * _DAY_MS))
    else:
        train, test = temporal_holdout(train, fraction=options.valid_fraction)
    return Dataset(*train_and_test(train, test, min_support=options.min_support), bad_rows)


def _sessions(path: Path, log: ClickLog, options: DataOptions) -> SessionSet:
    if options.idle_gap_minutes is None:
        return drop_short(group_sessions(log))
    if log.timestamp is None:
        raise ClickFileError(f"{path}: has no timestamps to find idle gaps by: leave the idle gap out")
    return drop_short(group_sessions(log, idle_gap_ms=round(options.idle_gap_minutes * _MINUTE_MS)))
