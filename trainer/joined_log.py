"""Several files as one log, as if they stood one after the other in one file."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trainer.errors import ClickFileError
from trainer.public_formats import Form, form_of, read_public
from trainer.readers import BadRow, ClickLog, codes


@dataclass(frozen=True)
class BadRows:
    """Of one file: how many rows were left out, and the first ones."""

    count: int
    examples: tuple[BadRow, ...]


@dataclass(frozen=True)
class JoinedLog:
    """The clicks of all files, the form that they share, and what was left out of each."""

    clicks: ClickLog
    form: Form
    bad_rows: dict[str, BadRows]


def read_log(paths: Sequence[Path], *, skip_bad_rows: bool = False) -> JoinedLog:
    """The clicks of one file or several of one form, in the order of the files.

    A session id is the same session in all of them. Raises :class:`ClickFileError` as
    :func:`trainer.public_formats.read_public` does, and for files that are no one log.
    """
    form = _common_form(paths)
    logs = [read_public(path, form, skip_bad_rows=skip_bad_rows) for path in paths]
    for path, log in zip(paths, logs, strict=True):
        if (log.timestamp is None) != (logs[0].timestamp is None):
            without, having = (path, paths[0]) if log.timestamp is None else (paths[0], path)
            raise ClickFileError(
                f"{without}: has no timestamps, and {having} has some: give each file the column, or none"
            )
    bad_rows = {str(path): BadRows(log.bad_rows, log.bad_examples) for path, log in zip(paths, logs, strict=True)}
    clicks = logs[0] if len(logs) == 1 else _joined(logs)
    return JoinedLog(replace(clicks, session_ids=None), form, bad_rows)


def _common_form(paths: Sequence[Path]) -> Form:
    forms = [form_of(path) for path in paths]
    for number, (path, form) in enumerate(zip(paths, forms, strict=True)):
        if path in paths[:number]:
            raise ClickFileError(f"{path}: is named twice, and its clicks would count twice: name it once")
        if form is not forms[0]:
            raise ClickFileError(
                f"{path}: is of the form {form.name}, and {paths[0]} of the form {forms[0].name}: files of one log are "
                "of one form; leave one out, or write both as click files with session_id, item_id and timestamp"
            )
    return forms[0]


def _joined(logs: Sequence[ClickLog]) -> ClickLog:
    sessions, _ = _shared_codes([log.session_ids for log in logs])
    items, item_ids = _shared_codes([pa.array(log.item_ids, pa.binary()) for log in logs])
    times = [log.timestamp for log in logs if log.timestamp is not None]
    return ClickLog(
        np.concatenate([code[log.session] for code, log in zip(sessions, logs, strict=True)]),
        np.concatenate([code[log.item] for code, log in zip(items, logs, strict=True)]),
        tuple(value.decode() for value in item_ids.to_pylist()),
        np.concatenate(times) if times else None,
    )


def _shared_codes(ids: Sequence[Any]) -> tuple[list[npt.NDArray[np.int64]], Any]:
    """For each array of ids a code for each, the same one for the same id in all arrays; and the ids by these codes."""
    code, _, shared = codes(pa.chunked_array(ids))
    return np.split(code, np.cumsum([len(of) for of in ids])[:-1]), shared
