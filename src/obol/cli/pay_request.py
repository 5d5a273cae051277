"""What `obol pay` is asked to send: method, headers and body from curl-like arguments."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from obol.errors import SettingsError

_JSON = "application/json"


@dataclass(frozen=True, slots=True)
class PayRequest:
    """One request, ready to be sent."""

    method: str
    url: str
    headers: list[tuple[str, str]]
    body: bytes | None


@dataclass(frozen=True, slots=True)
class BodyArguments:
    """Where the body comes from. `data` is text, `@file`, or `@-` or `-` for stdin."""

    data: str | None
    model: str | None
    prompt: str | None
    stream: bool


def build_request(url: str, method: str | None, header_lines: Sequence[str], body: BodyArguments) -> PayRequest:
    """The request; POST when it has a body. Raises `SettingsError` naming the flag that is wrong."""
    if not url.startswith(("http://", "https://")):
        raise SettingsError("URL", f"{url!r} is not an http:// or https:// address")
    content = _body(body)
    headers = [_header(line) for line in header_lines]
    if content is not None and not any(name.lower() == "content-type" for name, _ in headers):
        headers.append(("Content-Type", _JSON))
    return PayRequest(method or ("GET" if content is None else "POST"), url, headers, content)


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon or not name.strip() or not line.isascii() or not line.isprintable():
        raise SettingsError("-H", f"{line!r} is not a header: write 'Name: value'")
    return name.strip(), value.strip()


def _body(arguments: BodyArguments) -> bytes | None:
    if arguments.prompt is not None:
        return _chat(arguments)
    data = None if arguments.data is None else _read(arguments.data)
    if arguments.model is None and not arguments.stream:
        return data
    if data is None:
        raise SettingsError("--model", "there is no JSON body to put it in: give -d or --prompt")
    try:
        fields = json.loads(data)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise SettingsError("--model", "the body of -d is not a JSON object")
    return json.dumps(fields | _extras(arguments), ensure_ascii=False).encode()


def _chat(arguments: BodyArguments) -> bytes:
    if arguments.data is not None:
        raise SettingsError("--prompt", "-d and --prompt are both a body: give one")
    if arguments.model is None:
        raise SettingsError("--prompt", "it needs --model")
    message = {"role": "user", "content": arguments.prompt}
    return json.dumps(_extras(arguments) | {"messages": [message]}, ensure_ascii=False).encode()


def _extras(arguments: BodyArguments) -> dict[str, Any]:
    extras: dict[str, Any] = {} if arguments.model is None else {"model": arguments.model}
    return extras | ({"stream": True} if arguments.stream else {})


def _read(data: str) -> bytes:
    if data in ("-", "@-"):
        return sys.stdin.buffer.read()
    if not data.startswith("@"):
        return data.encode()
    try:
        return Path(data[1:]).read_bytes()
    except OSError as error:
        raise SettingsError("-d", f"{data[1:]} cannot be read: {error.strerror}") from None
