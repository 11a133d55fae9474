"""The click log: a folder of Parquet files that holds every collected offset of the clicks topic exactly once.

A file is named by what it holds, `clicks-p<partition>-<first offset>-<last offset>.parquet`, and appears whole, by one
rename. So the position to collect from is read off the names, and no kill can make the two disagree. Offsets whose
record is no click are in a file's range and have no row. One process writes a partition at a time; locks see to that,
which the system takes back from a process that ends.
"""

import fcntl
import itertools
import re
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import structlog

from schemas import durable
from trainer.data.click_log_lock import LOCK as FILES_LOCK
from trainer.data.click_log_lock import rearranging
from trainer.errors import ClickLogError

log = structlog.get_logger(__name__)

SCHEMA: Final = pa.schema(
    [
        ("session_id", pa.string()),
        ("item_id", pa.string()),
        ("timestamp", pa.int64()),  # event time, milliseconds since the epoch
        ("offset", pa.int64()),
        ("type", pa.string()),  # null for a click that names none; files of before types lack the column
    ]
)
_TYPE: Final = SCHEMA.field("type")
_ALWAYS: Final = SCHEMA.names[:-1]
_NAME: Final = re.compile(r"clicks-p(\d{5})-(\d{20})-(\d{20})\.parquet")
_LOCK: Final = ".lock"
_TRAINER_LOCK: Final = ".lock-trainer"
_WRITER: Final = ".writer"
_WRITER_NAME: Final = re.compile(r"[0-9a-f]{32}")
_TOPIC, _TOPIC_ID, _EXPECTED = b"nextclick.topic", b"nextclick.topic_id", b"nextclick.expected_first"


@dataclass(frozen=True, order=True)
class LogFile:
    """The offsets `first` to `last`, both included, of one partition."""

    partition: int
    first: int
    last: int

    @property
    def name(self) -> str:
        return f"clicks-p{self.partition:05d}-{self.first:020d}-{self.last:020d}.parquet"

    @classmethod
    def of_name(cls, name: str) -> "LogFile | None":
        match = _NAME.fullmatch(name)
        return None if match is None else cls(*map(int, match.groups()))


@dataclass(frozen=True)
class TopicIdentity:
    """The topic that clicks come from: a topic deleted and created anew has the same name and another id."""

    name: str
    topic_id: str


@dataclass(frozen=True)
class Rows:
    """The clicks of a range of offsets, as columns of equal length."""

    session_id: list[str]
    item_id: list[str]
    timestamp: list[int]
    offset: list[int]
    type: list[str | None]


@dataclass(frozen=True)
class LostOffsets:
    """Offsets `first` to `last` that the topic's retention removed before they were collected."""

    partition: int
    first: int
    last: int

    @property
    def count(self) -> int:
        return self.last - self.first + 1


@dataclass(frozen=True)
class LogState:
    """What a folder holds, partition by partition, in the order of the offsets."""

    files: tuple[LogFile, ...]
    lost: tuple[LostOffsets, ...]

    @property
    def next_offsets(self) -> dict[int, int]:
        """For each partition with files, the offset to collect next."""
        return {file.partition: file.last + 1 for file in self.files}


class ClickLogFolder:
    """The files of one click log, or of some of its partitions. Not thread-safe.

    Hold `locked()` while writing; several who share the partitions hold `shared()`, and each a claim on what it writes.
    """

    def __init__(self, folder: Path, partitions: Collection[int] | None = None) -> None:
        """`partitions`: whatever the folder holds of others is neither seen nor touched. None: all."""
        self.folder = folder
        self._partitions = partitions

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make this process the one writer. Raises ClickLogError when there is another, or the folder is not usable."""
        with self._open_lock(_LOCK) as lock:
            if not _flock(lock, fcntl.LOCK_EX):
                raise ClickLogError(
                    f"{self.folder}: another process collects into it; stop that one, or name another trainer.log_dir"
                )
            yield

    @contextmanager
    def shared(self, *, trainer: bool = False) -> Iterator[None]:
        """Let others of the same consumer group write as well; of those that train from the log there is still one.

        Raises ClickLogError when a process has the log for itself, or the folder is not usable.
        """
        with ExitStack() as held:
            if not _flock(held.enter_context(self._open_lock(_LOCK)), fcntl.LOCK_SH):
                raise ClickLogError(
                    f"{self.folder}: a process without trainer.collect_group collects into it; stop that one, or name "
                    "another trainer.log_dir"
                )
            if trainer and not _flock(held.enter_context(self._open_lock(_TRAINER_LOCK)), fcntl.LOCK_EX):
                raise ClickLogError(f"{self.folder}: another process trains from it; stop that one")
            yield

    def claim(self, partition: int) -> TextIO | None:
        """Make this process the one that writes a partition, until the file is closed; None while another one is.

        Raises ClickLogError.
        """
        lock = self._open_lock(f"{_LOCK}-p{partition:05d}")
        if _flock(lock, fcntl.LOCK_EX):
            return lock
        lock.close()
        return None

    def _open_lock(self, name: str) -> TextIO:
        path = self.folder / name
        try:
            self.folder.mkdir(mode=durable.PRIVATE_FOLDER, parents=True, exist_ok=True)
            (self.folder / FILES_LOCK).touch()
            return path.open("a+")  # on NFS a lock is shared by who may read, and had alone by who may write
        except OSError as error:
            raise self._unwritable(path, error) from error

    def writer(self) -> str:
        """The name of whoever trains from this log, the same over restarts. Raises ClickLogError.

        Only inside `locked()` or `shared(trainer=True)`.
        """
        file = self.folder / _WRITER
        try:
            name = file.read_text(encoding="ascii", errors="replace").strip() if file.exists() else ""
            if not _WRITER_NAME.fullmatch(name):  # the first start, or a damaged file: nothing else depends on it
                name = uuid.uuid4().hex
                durable.replace(file, f"{name}\n".encode())
        except OSError as error:
            raise self._unwritable(file, error) from error
        return name

    def scan(self) -> LogState:
        """Read the names, and of files after a gap why there is one. Raises ClickLogError for files that cannot be
        what collectors wrote: overlaps, unexplained gaps, foreign Parquet files.

        Parts of a file that a killed writer had joined them into do not count.
        """
        # Files appear while names are listed: of two new ones the first may be missed. A second list has all that came
        # before anything in the first.
        ends = {file.partition: file.last for file in sorted(self._named())}
        named = [file for file in self._named() if file.last <= ends.get(file.partition, -1)]
        files = sorted(set(named) - set(self._joined_parts(named)))
        by_partition: dict[int, list[LogFile]] = defaultdict(list)
        for file in files:
            by_partition[file.partition].append(file)
        lost = [
            gap
            for _, chain in sorted(by_partition.items())
            for before, after in itertools.pairwise(chain)
            if (gap := self._between(before, after)) is not None
        ]
        return LogState(tuple(files), tuple(lost))

    def write(self, partition: int, first: int, last: int, rows: Rows, *, topic: TopicIdentity, expected: int) -> Path:
        """Add the offsets `first` to `last`. All or nothing, and durable when this returns.

        `expected` is the offset that was to come next: below `first` when retention was faster than we were.
        """
        file = LogFile(partition, first, last)
        metadata = {_TOPIC: topic.name, _TOPIC_ID: topic.topic_id, _EXPECTED: str(expected)}
        table = pa.table(
            [rows.session_id, rows.item_id, rows.timestamp, rows.offset, rows.type],
            schema=SCHEMA.with_metadata(metadata),
        )
        return self._put(file, table)

    def topic_of(self, file: LogFile) -> TopicIdentity:
        """The topic that a file was collected from. Raises ClickLogError for a file that cannot be read."""
        metadata = self._metadata(file)
        name, topic_id = (metadata.get(key, b"").decode(errors="replace") for key in (_TOPIC, _TOPIC_ID))
        return TopicIdentity(name, topic_id)

    def newest_timestamp(self, file: LogFile) -> int | None:
        """Event time of a file's newest click, from the file's own statistics; None for a file without clicks."""
        return newest_timestamp(self._open(file).metadata)

    def times(self, file: LogFile) -> npt.NDArray[np.int64]:
        """Event times of a file's clicks, in the order of their offsets. Raises ClickLogError."""
        opened = self._open(file)
        with self._reading(file):
            column = opened.read(columns=["timestamp"])["timestamp"]
        if column.null_count:
            raise self._unreadable(file, "its column timestamp has rows without a value")
        found: npt.NDArray[np.int64] = column.to_numpy()
        return found

    def count(self, file: LogFile) -> int:
        """How many clicks a file holds."""
        return int(self._open(file).metadata.num_rows)

    def rows(self, file: LogFile, *, encoded: bool = False) -> Any:
        """A file as a pyarrow table with the columns of SCHEMA; `encoded`: ids as dictionaries, each text held once.

        Of a file of before there were types all are null.

        Raises ClickLogError.
        """
        opened = self._open(file, encoded=encoded)
        with self._reading(file):
            table = opened.read(columns=SCHEMA.names)
            table.validate(full=True)  # texts that are no UTF-8
        if empty := [name for name in _ALWAYS if table[name].null_count]:
            raise self._unreadable(file, f"its column {empty[0]} has rows without a value")
        return table if "type" in table.schema.names else table.append_column(_TYPE, pa.nulls(len(table), _TYPE.type))

    def clean(self) -> list[Path]:
        """Remove what killed writers left: unfinished files, and files whose joined successor is there already.

        Files of other names are not ours, and one whose rows the longer file does not hold was never joined into it:
        they stay, and `scan` tells what is wrong with the latter.
        """
        left = [path for path in self.folder.glob(durable.unfinished("*")) if self._is_ours(_of_unfinished(path.name))]
        left.extend(self.folder / file.name for file in self._joined_parts(self._named()))
        for path in left:
            path.unlink()
        return left

    def _joined_parts(self, files: Iterable[LogFile]) -> Iterator[LogFile]:
        """Those whose rows a longer one holds as well."""
        previous: LogFile | None = None
        # The longer of two files that begin alike comes first, so what it contains follows it.
        for file in sorted(files, key=lambda f: (f.partition, f.first, -f.last)):
            if previous and file.partition == previous.partition and file.last <= previous.last:
                if self._was_joined(file, previous):
                    yield file
            else:
                previous = file

    def _was_joined(self, part: LogFile, whole: LogFile) -> bool:
        offsets = pc.field("offset")
        within = self.rows(whole).filter((offsets >= part.first) & (offsets <= part.last))
        return self.topic_of(part) == self.topic_of(whole) and self.rows(part).equals(within)

    def tidy(self, keep_seconds: float) -> None:
        """Remove files of clicks older than that (0: none) and join small ones; another time, if somebody reads now."""
        with rearranging(self.folder) as may:
            if not may:
                return
            for file in self.prune(round(keep_seconds * 1000)) if keep_seconds else ():
                log.info("removed an old log file", file=file.name)
            self.merge()

    def prune(self, keep_ms: int) -> list[LogFile]:
        """Remove, from each partition's beginning, files of clicks older than `keep_ms` before the log's newest click.

        A partition's last file always stays: it says where to go on.
        """
        files = self.scan().files
        newest = {file: self.newest_timestamp(file) for file in files}
        limit = max((time for time in newest.values() if time is not None), default=0) - keep_ms
        last = {file.partition: file for file in files}
        removed: list[LogFile] = []
        stays: set[int] = set()
        for file in files:
            time = newest[file]
            if file.partition in stays or file == last[file.partition] or (time is not None and time >= limit):
                stays.add(file.partition)
            else:
                removed.append(file)
        for file in removed:
            (self.folder / file.name).unlink()
        return removed

    def forget(self, partition: int, session_ids: Collection[str]) -> int:
        """Remove the clicks of these sessions from the partition's files; returns how many there were.

        Each file that holds any is replaced by one of the same name without them.
        """
        wanted = pa.array(sorted(session_ids), pa.string())
        removed = 0
        for file in self.scan().files:
            if file.partition != partition:
                continue
            table = self.rows(file)
            theirs = pc.is_in(table["session_id"], value_set=wanted)
            if count := pc.sum(theirs).as_py():
                self._put(file, table.filter(pc.invert(theirs)).replace_schema_metadata(self._metadata(file)))
                removed += int(count)
        return removed

    def merge(self, *, at_least: int = 16, target_bytes: int = 64 * 1024**2) -> int:
        """Join runs of `at_least` adjacent small files, so that a reader does not open thousands. Returns files saved.

        The joined file is in place before its parts go; `clean` finishes what a kill interrupts.
        """
        saved = 0
        for run in self._small_runs(target_bytes):
            if len(run) < at_least:
                continue
            metadata = self._metadata(run[0])
            table = pa.concat_tables([self.rows(file) for file in run]).replace_schema_metadata(metadata)
            self._put(LogFile(run[0].partition, run[0].first, run[-1].last), table)
            for file in run:
                (self.folder / file.name).unlink()
            saved += len(run) - 1
        return saved

    def _small_runs(self, target_bytes: int) -> Iterator[list[LogFile]]:
        run: list[LogFile] = []
        size = 0
        for file in self.scan().files:
            own = (self.folder / file.name).stat().st_size
            adjacent = bool(run) and run[-1].partition == file.partition and run[-1].last + 1 == file.first
            if not adjacent or size + own > target_bytes:
                yield run
                run, size = [], 0
            run, size = [*run, file], size + own
        yield run

    def _named(self) -> Iterator[LogFile]:
        for path in self.folder.glob("*.parquet"):
            file = LogFile.of_name(path.name)
            if file is None or file.last < file.first:
                raise ClickLogError(f"{path}: is no file of a click log; move it out of the folder")
            if self._is_ours(file):
                yield file

    def _is_ours(self, file: LogFile | None) -> bool:
        return file is not None and (self._partitions is None or file.partition in self._partitions)

    def _between(self, before: LogFile, after: LogFile) -> LostOffsets | None:
        if after.first == before.last + 1:
            return None
        if after.first <= before.last:
            raise ClickLogError(
                f"{self.folder}: {before.name} and {after.name} overlap; one of them was copied here: remove it"
            )
        if self._metadata(after).get(_EXPECTED) == str(before.last + 1).encode():
            return LostOffsets(before.partition, before.last + 1, after.first - 1)
        raise ClickLogError(
            f"{self.folder}: the file of the offsets {before.last + 1} to {after.first - 1} of partition "
            f"{before.partition} is missing; restore it, or remove the partition's files before it as well"
        )

    def _metadata(self, file: LogFile) -> Mapping[bytes, bytes]:
        return self._open(file).schema_arrow.metadata or {}

    def _open(self, file: LogFile, *, encoded: bool = False) -> Any:
        ids = ["session_id", "item_id"] if encoded else None
        with self._reading(file):
            # A flipped byte would be another item, or another time.
            opened = pq.ParquetFile(self.folder / file.name, read_dictionary=ids, page_checksum_verification=True)
            found = _columns(opened.schema_arrow)
        if found not in (_columns(SCHEMA), _columns(SCHEMA)[:-1]):
            columns = ", ".join(f"{name} {kind}" for name, kind in found)
            raise self._unreadable(file, f"its columns are {columns[:200] or 'none'}, not those of a click log")
        return opened

    @contextmanager
    def _reading(self, file: LogFile) -> Iterator[None]:
        """Of damaged bytes pyarrow raises Python's own errors as well, such as UnicodeDecodeError."""
        try:
            yield
        except MemoryError:
            raise  # says nothing of the file
        except Exception as error:
            raise self._unreadable(file, error) from error

    def _unreadable(self, file: LogFile, error: Exception | str) -> ClickLogError:
        return ClickLogError(
            f"{self.folder / file.name}: cannot be read: {error}; restore it, or remove it with the partition's files "
            "before it"
        )

    def _unwritable(self, path: Path, error: Exception) -> ClickLogError:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return ClickLogError(f"{path}: cannot be written: {reason}; see to the disk of trainer.log_dir")

    def _put(self, file: LogFile, table: Any) -> Path:
        target = self.folder / file.name
        try:
            with durable.replacing(target) as sink:
                pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
        except (pa.ArrowException, OSError) as error:
            raise self._unwritable(target, error) from error
        return target


def _columns(schema: Any) -> list[tuple[str, Any]]:
    """Names and types, of a dictionary that of what it holds."""
    types = (kind.value_type if pa.types.is_dictionary(kind) else kind for kind in schema.types)
    return list(zip(schema.names, types, strict=True))


def _of_unfinished(name: str) -> LogFile | None:
    """The file that was being written under this name."""
    file = LogFile.of_name(name.removeprefix(".").removesuffix(durable.UNFINISHED))
    return file if file is not None and name == durable.unfinished(file.name) else None


def _flock(file: TextIO, how: int) -> bool:
    """Whether the lock was free. Raises ClickLogError where there are no locks."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise ClickLogError(
            f"{file.name}: cannot be locked: {error.strerror}; trainer.log_dir must lie where there are locks (flock)"
        ) from error
    return True


def newest_timestamp(metadata: Any) -> int | None:
    """The largest `timestamp` of a Parquet file's statistics."""
    column = SCHEMA.get_field_index("timestamp")
    groups = [metadata.row_group(i).column(column).statistics for i in range(metadata.num_row_groups)]
    return max((group.max for group in groups if group is not None and group.has_min_max), default=None)
