"""A damaged local store on a real RocksDB: whatever bit flips, whatever is missing, the rows are right in the end."""

import asyncio
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import rocksdict

from stream_app.errors import StoreError
from stream_app.state import damage
from stream_app.state.store import SessionStore
from tests.integration.test_store import open_store, persisted, row

ROWS, BATCH = 1200, 20
Files = dict[str, bytes]


@dataclass
class Sample:
    """A store as a kill left it, and the changelog that it was made from."""

    store: SessionStore
    files: Files
    changelog: list[tuple[bytes, bytes | None, int]]

    @property
    def path(self) -> Path:
        path: Path = self.store.partition_path(0)
        return path

    def restarted(self, files: Files | None = None) -> None:
        """A worker that finds these files, and no block of any in its cache."""
        asyncio.run(self.store.stop())
        self.store._cache = rocksdict.Cache(2**24)
        if files is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            shutil.rmtree(self.path.with_name(f"{self.path.name}.damaged"), ignore_errors=True)
            self.path.mkdir()
            for name, content in files.items():
                (self.path / name).write_bytes(content)

    def served(self, use: Callable[[], None]) -> int:
        """Restore, read all rows and compare, with a new start where damage ends the worker; returns their number."""
        for starts in range(1, 4):
            try:
                covered = persisted(self.store)
                self.store.apply_changelog(0, self.changelog[0 if covered is None else covered + 1 :])
                use()
                found = self.store.rows(0, [key for key, _, _ in self.changelog])
            except StoreError:
                self.restarted()
            else:
                assert found == [value for _, value, _ in self.changelog]
                return starts
        raise AssertionError("a crash loop")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sample]:
    """Rows in three files, each with its own keys, and in the log of what was written last."""
    store = open_store(tmp_path_factory.mktemp("damage"))
    rng = random.Random("rows")
    changelog: list[tuple[bytes, bytes | None, int]] = [
        (b"session-%d" % n, row(n) + rng.randbytes(60), n) for n in range(ROWS)
    ]
    for first in range(0, ROWS, BATCH):
        records = changelog[first : first + BATCH]
        store.write_rows(0, {key: value or b"" for key, value, _ in records}, records[-1][2])
        if first in {ROWS // 4, ROWS // 2, 3 * ROWS // 4}:
            store._db_for_partition(0).flush()
    files = {file.name: file.read_bytes() for file in store.partition_path(0).iterdir()}
    assert sum(name.endswith(".sst") for name in files) == 3
    yield Sample(store, files, changelog)
    asyncio.run(store.stop())


def idle() -> None:
    """Nothing but reading."""


def flipped(sample: Sample, name: str, at: int, bits: int) -> Files:
    content = bytearray(sample.files[name])
    content[at] ^= bits
    return sample.files | {name: bytes(content)}


def test_flipped_bytes_anywhere(sample: Sample) -> None:
    rng = random.Random("flips")
    for name, content in sorted(sample.files.items()):
        for _ in range(3 if content else 0):
            sample.restarted(flipped(sample, name, rng.randrange(len(content)), rng.randrange(1, 256)))
            assert sample.served(idle) <= 2, name


def test_a_name_that_is_none(sample: Sample) -> None:
    sample.restarted(flipped(sample, "CURRENT", 3, sample.files["CURRENT"][3]))  # a zero byte
    assert sample.served(idle) == 1


def test_flipped_lengths_and_kinds_in_the_list_of_files(sample: Sample) -> None:
    """RocksDB takes what follows for the end that a crash left: rows are gone, their changelog offset is not."""
    name = next(name for name in sample.files if name.startswith("MANIFEST"))
    manifest, at, rng = sample.files[name], 0, random.Random("lengths")
    while at < len(manifest):
        for byte in (4, 5, 6):
            sample.restarted(flipped(sample, name, at + byte, rng.randrange(1, 256)))
            assert sample.served(idle) == 1
        at += 7 + struct.unpack_from("<H", manifest, at + 4)[0]


@pytest.mark.parametrize("what", ["missing", "empty", "cut", "garbage"])
def test_missing_and_cut_files(sample: Sample, what: str) -> None:
    rng = random.Random(what)
    for name, content in sorted(sample.files.items()):
        files = dict(sample.files)
        if what == "missing":
            del files[name]
        else:
            cut = content[: max(0, len(content) - 3)]
            files[name] = {"empty": b"", "cut": cut, "garbage": rng.randbytes(99)}[what]
        sample.restarted(files)
        assert sample.served(idle) <= 2, name


def test_damage_that_a_compaction_finds(sample: Sample) -> None:
    """RocksDB then takes no more writes, in all of its life."""
    name = next(name for name in sorted(sample.files) if name.endswith(".sst"))

    def compact_and_write() -> None:
        db = sample.store._db_for_partition(0)
        db.compact_range(None, None)
        key, value, offset = sample.changelog[-1]
        sample.store.write_rows(0, {key: value or b""}, offset)

    sample.restarted(flipped(sample, name, 1000, 1))
    assert sample.served(compact_and_write) == 2


def test_the_last_damaged_copy_is_kept(sample: Sample) -> None:
    sample.restarted(sample.files)
    aside = sample.path.with_name(f"{sample.path.name}.damaged")
    for reason in ("the first", "the second"):
        damage.mark(sample.path, reason)
        sample.restarted()
        assert sample.served(idle) == 1
        assert [path for path in sample.path.parent.iterdir() if "damaged" in path.name] == [aside]
        assert (aside / "DAMAGED").read_text() == reason


@pytest.mark.parametrize(
    "text",
    [
        "IO error: While lock file: /data/sessions-0.db/LOCK: Resource temporarily unavailable",
        "IO error: No space left on device: While appending to file: /data/sessions-0.db/000009.log",
        "IO error: While appending to file: /data/sessions-0.db/000009.log: File too large; Writer has previous error.",
        "IO error: While open a file for appending: /data/sessions-0.db/000009.log: Permission denied",
        "Closed: /data/sessions-0.db",
    ],
)
def test_what_is_no_damage(text: str) -> None:
    assert not damage.is_damage(Exception(text), Path("/data/sessions-0.db"))
