"""What a cycle trains on: the sessions of the click log's newest part, and which of them no model has seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trainer.click_log import ClickLogFolder, LogFile
from trainer.readers import ClickLog
from trainer.sessions import SessionSet, drop_short, group_sessions


@dataclass(frozen=True)
class Window:
    """Sessions of two and more clicks, oldest first."""

    sessions: SessionSet
    new_sessions: int
    """Session ids with a click at or after the positions that the last model was trained up to."""
    positions: dict[int, int]
    """The offset after the last one of each partition's that is in here."""


def read_window(
    folder: ClickLogFolder, *, window_ms: int, idle_gap_ms: int, trained: Mapping[int, int]
) -> Window | None:
    """The sessions whose last click lies within `window_ms` of the log's newest click (0: all); None without clicks.

    `trained` are the positions of the last model's window, by partition. Raises ClickLogError.
    """
    state = folder.scan()
    newest = {file: folder.newest_timestamp(file) for file in state.files}
    limit = max((time for time in newest.values() if time is not None), default=0) - window_ms if window_ms else 0
    files = [file for file in state.files if (time := newest[file]) is not None and time >= limit]
    if not files:
        return None
    ends = state.next_offsets
    # Positions beyond the log's end are those of another topic: everything here is new then.
    known = trained if all(ends.get(number, 0) >= position for number, position in trained.items()) else {}
    clicks, is_new = _read(folder, files, known)
    sessions = group_sessions(clicks, idle_gap_ms=idle_gap_ms)
    recent = drop_short(sessions.select(sessions.ends >= limit))
    return Window(recent, len(np.unique(clicks.session[is_new])), ends)


def _read(
    folder: ClickLogFolder, files: Sequence[LogFile], trained: Mapping[int, int]
) -> tuple[ClickLog, npt.NDArray[np.bool_]]:
    tables = [folder.rows(file) for file in files]
    is_new = [
        table["offset"].to_numpy() >= trained.get(file.partition, 0) for file, table in zip(files, tables, strict=True)
    ]
    # In the order of partitions and offsets: clicks of the same millisecond stay in the order of their arrival.
    table = pa.concat_tables(tables)
    session, _ = _codes(table["session_id"])
    item, item_ids = _codes(table["item_id"])
    return ClickLog(session, item, tuple(item_ids), table["timestamp"].to_numpy()), np.concatenate(is_new)


def _codes(column: Any) -> tuple[npt.NDArray[np.int64], list[str]]:
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), encoded.dictionary.to_pylist()
