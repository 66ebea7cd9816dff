"""Linearizability of recorded histories (K1): what many clients saw, while the daemon and the network failed, could
have been seen where one call was executed after the other, and each once."""
