"""The whole system in one process and in virtual time, decided by a seed."""
