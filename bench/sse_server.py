"""A model server that streams at a set pace and costs little: raw asyncio, no framework.

`python -m bench.sse_server PORT`. The request's body says how many chunks, and how far apart: `chunks`, `interval_s`.
"""

import asyncio
import json
import sys
from typing import cast

from bench.offer import MODEL
from bench.programs import HOST
from obol.adapters.event_loop import run

_EVENT = (
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":0,"model":"bench","choices":'
    b'[{"index":0,"delta":{"content":" word"},"finish_reason":null}]}\n\n'
)
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_CHUNK = b"%x\r\n%b\r\n" % (len(_EVENT), _EVENT)
_LAST = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
_MODELS = json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}).encode()
_PLAIN = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"


class Model(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self._received = b""
        self._timer: asyncio.TimerHandle | None = None
        self._left = 0
        self._interval_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, _: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, blank, rest = self._received.partition(b"\r\n\r\n")
        if not blank:
            return
        length = next(
            (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        if len(rest) >= length:
            self._received = rest[length:]
            self._answer(head, rest[:length])

    def _answer(self, head: bytes, body: bytes) -> None:
        if not head.startswith(b"POST "):
            is_models = head.startswith(b"GET /v1/models ")
            status, found = (b"200 OK", _MODELS) if is_models else (b"404 Not Found", b"{}")
            self._transport.write(_PLAIN % (status, len(found), found))
            return
        wanted = json.loads(body)
        self._left, self._interval_s = wanted["chunks"], wanted["interval_s"]
        self._transport.write(_HEAD)
        self._due_s = asyncio.get_running_loop().time()
        self._tick()

    def _tick(self) -> None:
        self._left -= 1
        self._transport.write(_CHUNK)
        if not self._left:
            self._timer = None
            self._transport.write(_LAST)
            return
        self._due_s += self._interval_s
        self._timer = asyncio.get_running_loop().call_at(self._due_s, self._tick)


async def serve(port: int) -> None:
    """Until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Model, HOST, port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    run(serve(int(sys.argv[1])))
