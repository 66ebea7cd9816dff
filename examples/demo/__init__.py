"""A mailing list on three processes, once with a shared store and once without: `python -m examples.demo`."""
