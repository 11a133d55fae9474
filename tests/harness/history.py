"""What happened in a run, as lines of JSON: the verdict is reached from this file and the bundles alone.

Each line has `at`, seconds since the run began, and `what`:

    setting       name, value: what the verdict has to know of the system
    model         version, path: a bundle that was announced
    sent          event: the name of a record that was handed to the producer
    acknowledged  event, partition, offset: Kafka has confirmed it
    received      partition, offset, ranking: a record of the rankings topic, as a consumer saw it
    nemesis       action, and what it was done to. `unclean`: so many workers had no chance to finish their clicks.
                  `healed`: from here on it should get better
    click         partition, offset, key, value: a record of the clicks topic, as it was there at the end
    rejected      partition, offset: the source of a record of the topic of rejected clicks
    catalogue     topic, offset, key, value: a record of `items` or `rules`
    shadow        partition, offset, ranking: a record of the shadows' topic, by its source
    split         shares: percentages of aliases, in order; none without a split
    row           where, partition, offset, key, row: a record of the changelog (null deletes a row), or of a RocksDB
    covered       where, partition, offset: what a RocksDB says of itself
    committed     partition, offset, end: the group's acknowledgement, and the end of the clicks topic
    in_flight     partition, first, below: from one click to below another, a worker that lived may have had them when
                  another one may have got its partitions
    expired       partition, first, below: clicks from one offset, not acknowledged yet, to below another were removed
    lost          partition, offset, rows, newest: Kafka lost the clicks from this offset on. The rows in the changelog
                  that name such a click, as key and row, and which of them are the newest of their sessions
    told          partition, expired: workers told of so many clicks that they did not get to read
    recovered     seconds: from a kill of another part until it got on
    anew          partition, offset: from this click on no session has a row
    part          name, compared, wrong, told: what another part than the workers came to, compared with the topics
    end           nothing is missing in the file

Keys and values are text in Latin-1, which has a character for every byte; a ranking is the JSON that came.
"""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class History:
    """Writes a history; any thread may."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a", encoding="utf-8")
        self._lock = threading.Lock()
        self._began = time.monotonic()

    def note(self, what: str, **told: Any) -> None:
        """One line."""
        line = json.dumps({"at": round(time.monotonic() - self._began, 4), "what": what} | told)
        with self._lock:
            self._file.write(line + "\n")

    def received(self, partition: int, offset: int, value: bytes | None) -> None:
        """A ranking, as it is: what is no JSON breaks the line, and the verdict says so."""
        at, ranking = round(time.monotonic() - self._began, 4), "null" if value is None else value.decode("utf-8")
        head = f'{{"at": {at}, "what": "received", "partition": {partition}, "offset": {offset}'
        with self._lock:
            self._file.write(f'{head}, "ranking": {ranking}}}\n')

    def flush(self) -> None:
        """All lines up to now are in the file."""
        with self._lock:
            self._file.flush()

    def turn(self, path: Path) -> None:
        """All lines from now on are in another file."""
        with self._lock:
            self._file.close()
            self.path, self._file = path, path.open("a", encoding="utf-8")

    def close(self) -> None:
        """All lines are in the file."""
        with self._lock:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a history."""
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def as_text(data: bytes | None) -> str | None:
    """Bytes as a history has them."""
    return None if data is None else data.decode("latin-1")


def as_bytes(text: str) -> bytes:
    """The bytes again."""
    return text.encode("latin-1")
