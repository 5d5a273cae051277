"""What an upstream client makes of good answers, however they arrive."""

import asyncio
import gzip

import pytest

from obol.errors import (
    UpstreamBrokenError,
)
from tests.adapters.upstream_testing import (
    CHUNKED,
    OK,
    PATIENT_S,
    ContractBase,
    ask,
    get,
    post,
    read_all,
)
from tests.fakes.raw_server import (
    FINISH,
    REQUEST,
    RawConnection,
    RawServer,
    answering,
    playing,
)


class AnswerContract(ContractBase):
    """What an upstream client makes of good answers, however they arrive."""

    @pytest.mark.parametrize("framing", ["length", "chunked"])
    async def test_a_head_split_anywhere_is_the_same_answer(self, framing: str) -> None:
        whole = (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\n\r\nhello"
            if framing == "length"
            else b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: b\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
        )

        parts = [part for at in range(1, len(whole)) for part in (REQUEST, whole[:at], whole[at:])]
        async with self.talking(playing(*parts)) as (server, upstream):
            for _ in range(1, len(whole)):
                response = await upstream.open(post())
                assert (response.status, list(response.headers)) == (200, [("X-A", "b")])
                assert await read_all(response) == b"hello"
            assert len(server.connections) == 1

    async def test_names_order_and_repetition_of_headers_are_kept(self) -> None:
        answer = (
            b"HTTP/1.1 200 OK\r\nx-lower: 1\r\nX-UPPER: 2\r\nset-cookie: a=1\r\nSet-Cookie: b=2\r\n"
            b"Content-Type: text/event-stream\r\nX-Utf: \xc3\xa9\r\nContent-Length: 0\r\n\r\n"
        )
        async with self.talking(answering(answer)) as (_, upstream):
            response = await upstream.open(post())
            assert list(response.headers) == [
                ("x-lower", "1"),
                ("X-UPPER", "2"),
                ("set-cookie", "a=1"),
                ("Set-Cookie", "b=2"),
                ("Content-Type", "text/event-stream"),
                ("X-Utf", "é"),
            ]
            response.close()

    async def test_cookies_are_not_kept(self) -> None:
        answer = b"HTTP/1.1 200 OK\r\nSet-Cookie: session=1; Path=/\r\nContent-Length: 0\r\n\r\n"
        async with (
            RawServer(playing(REQUEST, answer, REQUEST, OK)) as server,
            self.client(f"http://localhost:{server.port}") as upstream,  # cookie jars may not take an address
        ):
            await ask(upstream)
            await ask(upstream)
            assert b"cookie" not in bytes(server.connections[0].received).lower()

    async def test_hop_by_hop_and_framing_headers_of_the_answer_are_removed(self) -> None:
        answer = (
            b"HTTP/1.1 200 OK\r\nConnection: X-Internal, keep-alive\r\nX-Internal: host7\r\nKeep-Alive: timeout=5\r\n"
            b"Proxy-Authenticate: Basic\r\nTrailer: X\r\nUpgrade: h2c\r\n"
            b"Transfer-Encoding: chunked\r\nX-Kept: 1\r\n\r\n0\r\n\r\n"
        )
        async with self.talking(answering(answer)) as (_, upstream):
            response = await upstream.open(post())
            assert list(response.headers) == [("X-Kept", "1")]
            assert await read_all(response) == b""

    @pytest.mark.parametrize("status", [b"100 Continue", b"102 Processing", b"103 Early Hints"])
    async def test_interim_answers_are_not_the_answer(self, status: bytes) -> None:
        interim = b"HTTP/1.1 " + status + b"\r\nLink: </x>\r\n\r\n"
        async with self.talking(playing(REQUEST, interim, interim, OK, REQUEST, interim + OK)) as (_, upstream):
            assert await ask(upstream) == (200, b"ok")
            assert await ask(upstream) == (200, b"ok")

    async def test_switching_protocols_is_broken(self) -> None:
        answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"
        async with self.talking(answering(answer)) as (server, upstream):
            with pytest.raises(UpstreamBrokenError):
                await upstream.open(post())
            await asyncio.wait_for(server.connections[0].peer_gone.wait(), PATIENT_S)

    @pytest.mark.parametrize("status", [204, 304])
    async def test_an_answer_without_body_ends_at_its_head(self, status: int) -> None:
        answer = f"HTTP/1.1 {status} X\r\nETag: x\r\n\r\n".encode()
        async with self.talking(playing(REQUEST, answer, REQUEST, OK)) as (server, upstream):
            assert await ask(upstream) == (status, b"")
            assert await ask(upstream) == (200, b"ok")
            assert len(server.connections) == 1

    async def test_an_answer_to_head_has_no_body_whatever_its_length_says(self) -> None:
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"
        async with self.talking(playing(REQUEST, answer, REQUEST, OK)) as (server, upstream):
            assert await ask(upstream, get(method="HEAD")) == (200, b"")
            assert await ask(upstream) == (200, b"ok")
            assert len(server.connections) == 1

    async def test_a_body_may_end_with_the_connection(self) -> None:
        for version in (b"HTTP/1.0", b"HTTP/1.1"):
            answer = version + b" 200 OK\r\nContent-Type: x\r\n\r\n"
            async with self.talking(answering(answer, b"one", b"two", FINISH)) as (_, upstream):
                assert await ask(upstream) == (200, b"onetwo")

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    async def test_redirects_are_answers(self, status: int) -> None:
        async with RawServer(answering(OK)) as elsewhere:
            answer = f"HTTP/1.1 {status} X\r\nLocation: {elsewhere.url}/\r\nContent-Length: 0\r\n\r\n".encode()
            async with self.talking(answering(answer)) as (_, upstream):
                response = await upstream.open(post())
                assert (response.status, list(response.headers)) == (status, [("Location", f"{elsewhere.url}/")])
                response.close()
            assert elsewhere.connections == []

    async def test_a_compressed_body_passes_undecoded(self) -> None:
        packed = gzip.compress(b"x" * 10_000)
        head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n".encode()
        async with self.talking(answering(head + packed)) as (_, upstream):
            response = await upstream.open(post())
            assert list(response.headers) == [("Content-Encoding", "gzip")]
            assert await read_all(response) == packed

    async def test_chunks_come_as_they_arrive(self) -> None:
        go = [asyncio.Event() for _ in range(3)]
        parts = (CHUNKED, go[0], b"4\r\none\n\r\n", go[1], b"4\r\ntw", go[2], b"o\n\r\n0\r\n\r\n")
        async with self.talking(answering(*parts)) as (_, upstream):
            response = await upstream.open(post())
            for event, expected in zip(go, (b"one\n", b"tw", b"o\n"), strict=True):
                event.set()
                assert await asyncio.wait_for(response.read_chunk(), PATIENT_S) == expected
            assert await response.read_chunk() == b""
            assert await response.read_chunk() == b""
            response.close()

    async def test_a_huge_body_is_not_collected(self) -> None:
        """Back-pressure: what nobody reads is not taken from the server."""
        piece = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        sent = 0

        async def endless(connection: RawConnection) -> None:
            nonlocal sent
            await connection.read_request()
            await connection.send(CHUNKED)
            while True:
                await connection.send(piece)
                sent += 1

        async with self.talking(endless) as (server, upstream):
            response = await upstream.open(post())
            assert await response.read_chunk()
            before = -1
            while before != sent:
                before = sent
                await asyncio.sleep(0.1)
            assert sent < 32 * 16
            response.close()
            await asyncio.wait_for(server.connections[0].peer_gone.wait(), PATIENT_S)
