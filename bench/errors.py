"""What ends a benchmark."""


class BenchmarkError(RuntimeError):
    """A benchmark did not get to its end; the message says what was missing."""
