"""RocksDB as our stores open it: bytes under bytes, rows that expire, one block cache for all partitions."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import rocksdict

_MIB: Final = 1024 * 1024
_BLOOM_BITS: Final = 10
_FAMILY: Final = "default"
"""RocksDB's name of the column family that is always there."""


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How much memory and time the local store may take.

    Attributes:
        cache_mb: block cache of all partitions together (Faust's default is 2 GiB for each of them).
        write_buffer_mb: memtables of each partition.
        ttl_seconds: rows older than this are dropped when RocksDB compacts.
    """

    cache_mb: int = 256
    write_buffer_mb: int = 16
    ttl_seconds: int = 6 * 3600


def block_cache(options: StoreOptions) -> Any:
    """The cache that all databases of a process share."""
    return rocksdict.Cache(options.cache_mb * _MIB)


def open_database(path: Path, options: StoreOptions, cache: Any) -> Any:
    """A database of bytes whose rows expire. Raises what RocksDB says; `stream_app.state.damage` reads that."""
    path.parent.mkdir(parents=True, exist_ok=True)
    database_options = _database_options(options, cache)
    db = rocksdict.Rdict(
        str(path),
        options=database_options,
        # Or rocksdict takes the options that it finds in an existing database: in place of ours, and with their
        # filter of expired rows inside the new one, where it reads a time from a row's last bytes and drops it.
        column_families={_FAMILY: database_options},
        access_type=rocksdict.AccessType.with_ttl(options.ttl_seconds),
    )
    # Expired rows go when their file is compacted: make that happen in time for files that nothing else touches.
    db.set_options({"periodic_compaction_seconds": str(options.ttl_seconds)})
    return db


def _database_options(wanted: StoreOptions, cache: Any) -> rocksdict.Options:
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_write_buffer_size(wanted.write_buffer_mb * _MIB)
    options.set_max_write_buffer_number(3)
    options.set_max_open_files(512)
    options.set_keep_log_file_num(2)
    options.set_compression_type(rocksdict.DBCompressionType.lz4())
    blocks = rocksdict.BlockBasedOptions()
    blocks.set_bloom_filter(_BLOOM_BITS, block_based=False)
    blocks.set_block_cache(cache)
    blocks.set_cache_index_and_filter_blocks(True)  # or they grow with the sessions, outside the cache's limit
    options.set_block_based_table_factory(blocks)
    return options
