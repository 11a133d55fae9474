"""`make proof`: the protocol's states in larger scopes than a test has time for."""

import sys
import time

import structlog

from tests.proof.protocol import Scope, explore

SCOPES = (
    Scope("aAa", expelled=1),
    Scope("aba", rebalances=1),
    Scope("aa", expelled=1, crashes=1),
    Scope("aa", expelled=1, at_once=1),
    Scope("aba", workers=1, crashes=1, wipes=1),
    Scope("aba", expelled=1),
    Scope("abaa", workers=1, swaps=1),
    Scope("aba", crashes=1, swaps=1),
)


def main() -> int:
    """Explore them all; returns the exit code."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    for scope in SCOPES:
        began = time.process_time()
        found = explore(scope)
        print(f"{found.states:9,} states  {time.process_time() - began:5.0f} s  {scope}", flush=True)
        if found.broken is not None:
            print(f"broken: {found.broken}", *found.steps, sep="\n  ")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
