"""OTTO's click log as it is downloaded: one JSON object a line, each a session with its events."""

from array import array
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trainer.readers import EXAMPLES, BadRow, ClickLog, open_text


class _Event(msgspec.Struct):
    aid: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    ts: Annotated[int, msgspec.Meta(ge=0, lt=10**14)]
    type: Literal["clicks", "carts", "orders"]


class _Session(msgspec.Struct):
    session: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    events: list[_Event]


def read_otto(path: Path) -> tuple[ClickLog, npt.NDArray[np.bool_]]:
    """The events that are clicks, and that all of them are good; a line that is no session is one bad row."""
    decoder = msgspec.json.Decoder(_Session)
    sessions, items, times = array("q"), array("q"), array("q")
    bad = 0
    examples: list[BadRow] = []
    with open_text(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                session = decoder.decode(line.encode("utf-8", errors="surrogateescape"))
            except msgspec.DecodeError as error:
                bad += 1
                if len(examples) < EXAMPLES:
                    examples.append(BadRow(f"line {number}", str(error)))
                continue
            for event in session.events:
                if event.type == "clicks":
                    sessions.append(session.session)
                    items.append(event.aid)
                    times.append(event.ts)
    ids, item = np.unique(np.frombuffer(items, np.int64), return_inverse=True)
    session_ids, session_code = np.unique(np.frombuffer(sessions, np.int64), return_inverse=True)
    timestamp = np.frombuffer(times, np.int64).copy()
    log = ClickLog(
        session_code.astype(np.int64),
        item.astype(np.int64),
        tuple(map(str, ids.tolist())),
        timestamp,
        bad,
        tuple(examples),
        pa.array(session_ids).cast(pa.string()).cast(pa.binary()),
    )
    return log, np.ones(len(log), np.bool_)
