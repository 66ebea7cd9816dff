"""Inputs by the million for what reads bytes that others wrote: connections, segments, snapshots.

A target is a function of bytes that returns where all is well and fails where it is not. Bytes are taken as choices
(see `choices`), so that the same target serves hypothesis, a driver without any knowledge, and one guided by coverage.
"""
