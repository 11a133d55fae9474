"""`make bench`: every benchmark, or those that BENCH names. Each is a module of its own with a `main`.

Several run in a process each: what one does to its process (threads, the core it keeps to, children it had) would be in
the figures of the next.
"""

import importlib
import subprocess
import sys

from bench import avx2

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
    "retraining",
    "preprocessing",
    "rules",
    "shadow",
    "scores",
    "api",
    "guard",
)
EXTRA = (
    "ci",
    "workers",
    "simulation",
    "capacity",
    "families",
    "tuning",
    "family_clicks",
    "family_training",
    "refresh",
    "tail",
    "pruned",
    "libraries",
    "diversity",
    "page",
)
"""Run only when named: parts of the others, what computes rather than measures, what needs a browser, or hours."""


def main(names: list[str]) -> None:
    """Run the named benchmarks, all of BENCHMARKS without a name. The exit code tells whether one failed."""
    known = (*BENCHMARKS, *EXTRA)
    for unknown in (name for name in names if name not in known):
        sys.exit(f"no benchmark {unknown!r}; there are {', '.join(known)}")
    if avx2.wanted() and not avx2.hidden():
        sys.exit(avx2.again(names))
    if len(names) == 1:
        importlib.import_module(f"bench.{names[0]}").main()
        return
    commands = {name: [sys.executable, "-m", "bench", name] for name in names or BENCHMARKS}
    failed = [name for name, command in commands.items() if subprocess.run(command, check=False).returncode]
    if failed:
        sys.exit(f"failed, see above: {', '.join(failed)}")


if __name__ == "__main__":
    main(sys.argv[1:])
