"""What can go wrong beneath a real daemon: killed at a certain call of the system, a disk that fails, one that is full."""
