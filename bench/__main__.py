"""`make bench`: every benchmark, or those that BENCH names. Each is a module of its own with a `main`."""

import importlib
import sys

BENCHMARKS = (
    "pipeline",
    "latency",
    "peers",
    "rank",
    "memory",
    "state",
    "swap",
    "training",
    "training_memory",
    "preprocessing",
)
EXTRA = ("ci", "capacity")
"""Run only when named: parts of the others, and what computes rather than measures."""


def main(names: list[str]) -> None:
    """Run the named benchmarks, all of BENCHMARKS without a name."""
    known = (*BENCHMARKS, *EXTRA)
    for unknown in (name for name in names if name not in known):
        sys.exit(f"no benchmark {unknown!r}; there are {', '.join(known)}")
    for name in names or BENCHMARKS:
        importlib.import_module(f"bench.{name}").main()


if __name__ == "__main__":
    main(sys.argv[1:])
