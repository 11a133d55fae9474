"""`make bench`: every benchmark, or the one that BENCH names. Each is a module of its own with a `main`."""

import importlib
import sys

BENCHMARKS = ("pipeline", "memory", "training")


def main(names: list[str]) -> None:
    """Run the named benchmarks, all without a name."""
    for unknown in (name for name in names if name not in BENCHMARKS):
        sys.exit(f"no benchmark {unknown!r}; there are {', '.join(BENCHMARKS)}")
    for name in names or BENCHMARKS:
        importlib.import_module(f"bench.{name}").main()


if __name__ == "__main__":
    main(sys.argv[1:])
