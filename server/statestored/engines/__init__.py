"""Where the states live. `base` is what the daemon asks of an engine; `embedded` is the default."""
