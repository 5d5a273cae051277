"""Random bytes for ids, drawn from the operating system in blocks: a system call for each costs as much as a quote."""

import os

_BLOCK_BYTES = 4096


class Entropy:
    """`entropy(n)` gives n fresh random bytes. For one thread; a forked child must make its own."""

    def __init__(self) -> None:
        self._block = b""
        self._position = 0

    def __call__(self, n: int) -> bytes:
        end = self._position + n
        if end > len(self._block):
            self._block = os.urandom(max(_BLOCK_BYTES, n))
            self._position, end = 0, n
        drawn = self._block[self._position : end]
        self._position = end
        return drawn
