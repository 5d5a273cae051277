"""The domain: what is sold, for how much, to whom, and what is owed. Pure: standard library only, no I/O, no clock."""
