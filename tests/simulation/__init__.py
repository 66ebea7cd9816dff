"""The whole system in one process and in virtual time: clients, network, daemon and disk, decided by a seed."""
