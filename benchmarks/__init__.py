"""Side by side with the alternatives, on one machine, in one run. `python -m benchmarks --help`; no timed tests."""
