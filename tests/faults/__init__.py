"""What can go wrong beneath a real daemon: a kill at a certain call, a disk that fails, and one that is full."""
