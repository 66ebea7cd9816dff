"""What ends a benchmark."""


class BenchmarkError(Exception):
    """There is no number to report. The text says why."""
