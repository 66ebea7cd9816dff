"""The daemon: one networked store of conversation states for many mail processes."""

from statestore import __version__

__all__ = ["__version__"]
