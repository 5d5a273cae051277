"""The outside: one file per outside thing. Sockets, clocks, randomness, keys and disks live here only."""
