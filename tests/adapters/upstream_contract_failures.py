"""What an upstream client says when something goes wrong."""

import asyncio
import socket

import pytest

from obol.errors import (
    UpstreamBrokenError,
    UpstreamTimeoutError,
    UpstreamUnavailableError,
)
from tests.adapters.upstream_testing import (
    CHUNKED,
    PATIENT_S,
    SHORT_S,
    ContractBase,
    ask,
    assert_says_nothing_internal,
    closed_port,
    connecting,
    connections_to,
    get,
    post,
    read_all,
)
from tests.fakes.raw_server import (
    FINISH,
    HEAD,
    RESET,
    RawConnection,
    RawServer,
    Step,
    answering,
    playing,
)


class FailureContract(ContractBase):
    """What an upstream client says when something goes wrong."""

    @pytest.mark.parametrize("end", [FINISH, RESET])
    @pytest.mark.parametrize(
        "part",
        [
            CHUNKED + b"5\r\nhello\r\n",
            CHUNKED + b"5\r\nhel",
            CHUNKED + b"5\r\nhello\r\n0\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
        ],
        ids=["chunked-no-end", "chunked-in-chunk", "chunked-no-last-line", "length"],
    )
    async def test_a_truncated_body_is_broken(self, part: bytes, end: Step) -> None:
        die = asyncio.Event()
        async with self.talking(answering(part, die, end)) as (_, upstream):
            response = await upstream.open(post())
            assert await response.read_chunk()
            die.set()
            for _ in range(2):
                with pytest.raises(UpstreamBrokenError):
                    await read_all(response)
            response.close()

    async def test_a_reset_is_never_the_end_of_a_body(self) -> None:
        die = asyncio.Event()
        async with self.talking(answering(b"HTTP/1.1 200 OK\r\n\r\nhello", die, RESET)) as (_, upstream):
            response = await upstream.open(post())
            assert await response.read_chunk() == b"hello"
            die.set()
            with pytest.raises(UpstreamBrokenError):
                await response.read_chunk()

    @pytest.mark.parametrize(
        "nonsense",
        [
            b"SSH-2.0-OpenSSH\r\n\r\n",
            b"HTTP/1.1 abc OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nok",
            b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 2_000 + b"\r\n",
            b"HTTP/1.1 200 " + b"a" * 70_000 + b"\r\n\r\n",
            b"\x16\x03\x01\x02\x00",
        ],
        ids=["ssh", "status", "lengths", "negative", "letters", "long-header", "many-headers", "long-line", "tls"],
    )
    async def test_nonsense_is_broken(self, nonsense: bytes) -> None:
        async with self.talking(answering(nonsense, FINISH)) as (_, upstream):
            with pytest.raises(UpstreamBrokenError) as caught:
                await upstream.open(post())
        assert_says_nothing_internal(caught.value)

    async def test_a_broken_chunk_is_broken(self) -> None:
        async with self.talking(answering(CHUNKED + b"5\r\nhello\r\n", b"zz\r\nhello\r\n")) as (_, upstream):
            with pytest.raises(UpstreamBrokenError):
                await ask(upstream)

    @pytest.mark.parametrize("end", [FINISH, RESET])
    @pytest.mark.parametrize("part", [b"", b"HTTP/1.1 200 OK\r\nX-A"], ids=["nothing", "half-a-head"])
    @pytest.mark.parametrize("method", ["GET", "POST"])
    async def test_a_connection_that_dies_before_the_answer_is_broken_and_not_tried_again(
        self, part: bytes, end: Step, method: str
    ) -> None:
        async with self.talking(answering(part, end)) as (server, upstream):
            with pytest.raises(UpstreamBrokenError) as caught:
                await upstream.open(get(method=method))
            assert len(server.connections) == 1
        assert_says_nothing_internal(caught.value)

    async def test_nobody_listening_is_unavailable(self) -> None:
        async with self.client(f"http://127.0.0.1:{closed_port()}") as upstream:
            with pytest.raises(UpstreamUnavailableError) as caught:
                await upstream.open(post())
        assert_says_nothing_internal(caught.value)

    async def test_an_unknown_name_is_unavailable(self) -> None:
        async with self.client("http://no-such-host.invalid:8000") as upstream:
            with pytest.raises(UpstreamUnavailableError) as caught:
                await upstream.open(post())
        assert "invalid" not in str(caught.value)

    async def test_no_tls_is_unavailable(self) -> None:
        async with (
            RawServer(playing(b"HTTP/1.1 400 Bad Request\r\n\r\n", FINISH)) as server,
            self.client(f"https://127.0.0.1:{server.port}") as upstream,
        ):
            with pytest.raises(UpstreamUnavailableError) as caught:
                await upstream.open(post())
        assert_says_nothing_internal(caught.value)

    async def test_no_connection_in_time_is_unavailable(self) -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
            port = full.getsockname()[1]
            fillers = [connecting(port) for _ in range(4)]
            async with self.client(f"http://127.0.0.1:{port}", connect_timeout_s=SHORT_S) as upstream:
                with pytest.raises(UpstreamUnavailableError):
                    await upstream.open(post())
            for filler in fillers:
                filler.close()

    async def test_no_head_in_time_is_a_timeout_and_the_server_sees_us_leave(self) -> None:
        async with (
            RawServer(answering(b"HTTP/1.1 200 OK\r\n")) as server,
            self.client(server.url, first_byte_timeout_s=SHORT_S) as upstream,
        ):
            with pytest.raises(UpstreamTimeoutError) as caught:
                await upstream.open(post())
            await asyncio.wait_for(server.connections[0].peer_gone.wait(), PATIENT_S)
        assert_says_nothing_internal(caught.value)

    async def test_a_request_that_nobody_reads_is_a_timeout(self) -> None:
        never = asyncio.Event()
        async with (
            RawServer(playing(HEAD, never)) as server,
            self.client(server.url, first_byte_timeout_s=SHORT_S) as upstream,
        ):
            with pytest.raises(UpstreamTimeoutError):
                await upstream.open(post(body=b"x" * 32 * 1024 * 1024))
            for _ in range(20):
                await asyncio.sleep(0)
            # cut, not kept until the rest of what was begun is written
            assert connections_to(server.port) == 0

    async def test_a_stall_is_a_timeout_and_the_server_sees_us_leave(self) -> None:
        async with (
            RawServer(answering(CHUNKED + b"2\r\nok\r\n")) as server,
            self.client(server.url, idle_timeout_s=SHORT_S) as upstream,
        ):
            response = await upstream.open(post())
            assert await response.read_chunk() == b"ok"
            with pytest.raises(UpstreamTimeoutError):
                await response.read_chunk()
            await asyncio.wait_for(server.connections[0].peer_gone.wait(), PATIENT_S)

    async def test_bytes_that_are_no_body_do_not_hold_off_the_idle_timeout(self) -> None:
        async def dribble(connection: RawConnection) -> None:
            await connection.read_request()
            await connection.send(CHUNKED + b"2\r\nok\r\n5;")
            while True:
                await connection.send(b"x")
                await asyncio.sleep(SHORT_S / 5)

        async with RawServer(dribble) as server, self.client(server.url, idle_timeout_s=SHORT_S) as upstream:
            response = await upstream.open(post())
            assert await response.read_chunk() == b"ok"
            with pytest.raises(UpstreamTimeoutError):
                await response.read_chunk()

    async def test_the_idle_timeout_is_not_a_limit_on_the_whole(self) -> None:
        async def slow(connection: RawConnection) -> None:
            await connection.read_request()
            await connection.send(CHUNKED)
            for _ in range(8):
                await asyncio.sleep(SHORT_S / 3)
                await connection.send(b"1\r\nx\r\n")
            await connection.send(b"0\r\n\r\n")
            await connection.wait_for_peer_to_leave()

        async with (
            RawServer(slow) as server,
            self.client(server.url, idle_timeout_s=SHORT_S, first_byte_timeout_s=SHORT_S) as upstream,
        ):
            assert await ask(upstream) == (200, b"x" * 8)
