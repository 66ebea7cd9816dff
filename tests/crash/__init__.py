"""A loss of power at any moment: what was done to the files is recorded, and whatever the disk may hold is tried (D3).

In the order of reading:

trace: what was done to the files, in order. recorder: how that is found out. disk: what the disk may hold after it.
states: all of that, or a sample. history: what was committed, and which of it has to be there. workload: an engine that
is kept busy. check: whether a start finds what it has to. explore: everything together. faults: the daemon with a fault
in it, which the tests must notice (K3).
"""
