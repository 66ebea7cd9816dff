"""Clients by the hundred that mean no good, and what a well-behaved one beside them notices of it."""
