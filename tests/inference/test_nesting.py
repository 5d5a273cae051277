"""Nesting bombs, also where a library in the process has raised the recursion limit."""

import json
import subprocess
import sys

import pytest

from obol.inference.nesting import MAX_DEPTH, is_nested_too_deeply

_VICTIM = """
import sys
sys.setrecursionlimit(1_000_000)
from obol.core.offer import Api
from obol.errors import MalformedRequestError
from obol.inference.request import read_request
from obol.inference.usage import read_plain_answer

bomb = b'{"model":"m","x":' + b"[" * 2_000_000
try:
    read_request(Api.CHAT, bomb)
except MalformedRequestError as error:
    print(error.reason)
print(read_plain_answer(Api.CHAT, bomb).has_output)
"""


def test_a_bomb_does_not_crash_a_process_whose_recursion_limit_was_raised() -> None:
    done = subprocess.run([sys.executable, "-c", _VICTIM], capture_output=True, text=True, timeout=25, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["invalid_json", "False"]), done.stderr


@pytest.mark.parametrize("text", [b"[" * 20_000, b"[[]," * 20_000, b'{"a":' * 20_000])
def test_deep_texts_are_found(text: bytes) -> None:
    assert is_nested_too_deeply(text)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([{"a": [1]}] * 20_000).encode(),
        json.dumps("[" * 50_000).encode(),
        json.dumps(["[{" * 20_000, {"b": ']"[' * 20_000}]).encode(),
        b"[" * MAX_DEPTH + b"]" * MAX_DEPTH,
        b"",
    ],
)
def test_wide_texts_and_brackets_in_strings_are_not_deep(text: bytes) -> None:
    assert not is_nested_too_deeply(text)
