"""The sessions on disk: Faust table, RocksDB, its damage and its locks."""
