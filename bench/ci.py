"""The main ratios within two minutes, for every change: small versions of the other benchmarks. Asserts nothing.

make bench BENCH=ci
"""

from bench.pipeline import Case
from bench.pipeline import measure as measure_pipeline
from bench.rank import measure as measure_rank


def main() -> None:
    """One worker on two catalogues, two workers on one, and the rank product by method."""
    cases = (Case(5_000, 1, 60_000), Case(5_000, 2, 60_000), Case(37_000, 1, 40_000))
    measure_pipeline(cases, rounds=1).show("Backlog of clicks, drained through a real Kafka")
    measure_rank((37_000,), (64,), (1,), seconds=1.0).show("Top k of a catalogue, one thread")
