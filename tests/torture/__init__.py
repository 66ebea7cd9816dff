"""`kill -9` at random moments under load: after every restart all that was acknowledged has to be there.

It ends the process, not the machine: what the daemon has handed to the kernel is safe here, synced or not.
"""
