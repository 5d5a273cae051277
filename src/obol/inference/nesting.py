"""Refusing JSON that is nested so deeply that a recursive parser could run out of stack.

A parser in C stops at Python's recursion limit, but any library in the process may have raised that limit (py_ecc sets
100,000); then forty thousand opening brackets are a crash of the whole gateway.
"""

import re

_SAFE_BRACKETS = 10_000
"""No text with fewer opening brackets can be nested deeper; half of what the stack was seen to bear."""

MAX_DEPTH = 512
"""Allowed where there are more brackets than that; real requests and answers stay below twenty."""

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)


def is_nested_too_deeply(text: bytes) -> bool:
    """True when parsing `text` could exhaust the stack. Two counts for ordinary texts."""
    if text.count(b"[") + text.count(b"{") <= _SAFE_BRACKETS:
        return False
    depth = 0
    for token in _TOKEN.finditer(text):
        first = text[token.start()]
        if first in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                return True
        elif first in b"]}":
            depth -= 1
    return False
