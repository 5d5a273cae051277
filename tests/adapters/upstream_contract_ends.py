"""How exchanges end, and which connections are used again."""

import asyncio

import pytest

from obol.errors import (
    UpstreamBrokenError,
    UpstreamError,
    UpstreamUnavailableError,
)
from tests.adapters.upstream_testing import (
    CHUNKED,
    OK,
    PATIENT_S,
    ContractBase,
    ask,
    error_of,
    get,
    post,
)
from tests.fakes.raw_server import (
    EOF,
    HEAD,
    PEER,
    REQUEST,
    RawConnection,
    RawServer,
    answering,
    playing,
)


class EndContract(ContractBase):
    """How exchanges end, and which connections are used again."""

    async def test_close_in_the_middle_is_seen_by_the_server_at_once(self) -> None:
        async with self.talking(answering(CHUNKED + b"2\r\nok\r\n", PEER)) as (server, upstream):
            response = await upstream.open(post())
            assert await response.read_chunk() == b"ok"
            response.close()
            response.close()
            await asyncio.wait_for(server.connections[0].peer_gone.wait(), 1.0)
            with pytest.raises(UpstreamError):
                await response.read_chunk()

    async def test_close_wakes_a_waiting_reader(self) -> None:
        async with self.talking(answering(CHUNKED)) as (_, upstream):
            response = await upstream.open(post())
            async with asyncio.TaskGroup() as tasks:
                reading = tasks.create_task(error_of(response.read_chunk))
                await asyncio.sleep(0)
                response.close()
            assert isinstance(reading.result(), UpstreamBrokenError)

    async def test_a_cancelled_open_is_seen_by_the_server_at_once(self) -> None:
        async with self.talking(answering(PEER)) as (server, upstream):
            async with asyncio.TaskGroup() as tasks:
                opening = tasks.create_task(upstream.open(post()))
                connection = await server.connection()
                opening.cancel()
            await asyncio.wait_for(connection.peer_gone.wait(), 1.0)

    async def test_a_connection_is_used_again_after_a_clean_end(self) -> None:
        async with self.talking(playing(*(REQUEST, OK) * 3)) as (server, upstream):
            for _ in range(3):
                assert await ask(upstream) == (200, b"ok")
            assert len(server.connections) == 1

    async def test_a_connection_is_not_used_again_after_a_close_in_the_middle(self) -> None:
        unfinished = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok"
        async with self.talking(playing(REQUEST, unfinished, REQUEST, OK), answering(OK)) as (server, upstream):
            response = await upstream.open(post())
            await response.read_chunk()
            response.close()
            assert await ask(upstream) == (200, b"ok")
            assert len(server.connections) == 2

    async def test_a_connection_that_says_close_is_not_used_again(self) -> None:
        last = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
        async with self.talking(answering(last)) as (server, upstream):
            for _ in range(2):
                assert await ask(upstream) == (200, b"ok")
            assert len(server.connections) == 2

    async def test_an_early_answer_arrives_while_the_request_is_being_sent(self) -> None:
        early = b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno"
        never = asyncio.Event()
        async with self.talking(playing(HEAD, early, never), answering(OK)) as (server, upstream):
            assert await ask(upstream, post(body=b"x" * 32 * 1024 * 1024)) == (413, b"no")
            assert await ask(upstream) == (200, b"ok")
            assert len(server.connections) == 2
            never.set()
            await asyncio.wait_for(server.connections[0].peer_gone.wait(), PATIENT_S)

    @pytest.mark.parametrize("at_once", [True, False])
    async def test_an_answer_nobody_asked_for_is_never_given_to_the_next_request(self, at_once: bool) -> None:
        extra = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nother"
        later = asyncio.Event()
        first = (OK + extra,) if at_once else (OK, later, extra)
        async with self.talking(answering(*first), answering(OK)) as (_, upstream):
            try:
                assert await ask(upstream) == (200, b"ok")
            except UpstreamBrokenError:
                assert at_once  # two answers in one read may also be called nonsense
            later.set()
            for _ in range(20):
                await asyncio.sleep(0)
            assert await ask(upstream) == (200, b"ok")

    async def test_a_connection_that_the_server_closed_while_idle_is_not_used(self) -> None:
        async with self.talking(answering(OK, EOF)) as (server, upstream):
            for count in (1, 2, 3):
                assert await ask(upstream) == (200, b"ok")
                await asyncio.wait_for(server.connections[-1].peer_gone.wait(), PATIENT_S)
                assert len(server.connections) == count

    async def test_an_idle_connection_is_dropped_after_the_keepalive(self) -> None:
        async with RawServer(playing(REQUEST, OK, REQUEST, OK)) as server:
            upstream = self.make(server.url, keepalive_s=0.05)
            assert await ask(upstream) == (200, b"ok")
            await asyncio.sleep(0.2)
            assert await ask(upstream) == (200, b"ok")
            assert len(server.connections) == 2
            await upstream.close()

    async def test_concurrent_requests_get_their_own_answers(self) -> None:
        async def echo(connection: RawConnection) -> None:
            while True:
                head = await connection.read_head()
                target = head.split(b" ")[1]
                await asyncio.sleep(0)
                await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(target))
                await connection.send(target)

        async with self.talking(echo) as (_, upstream):
            for _ in range(3):
                answers = await asyncio.gather(*(ask(upstream, get(f"/{n}")) for n in range(50)))
                assert answers == [(200, f"/{n}".encode()) for n in range(50)]

    async def test_close_ends_all_connections_and_is_idempotent(self) -> None:
        async with self.talking(playing(REQUEST, OK, PEER)) as (server, upstream):
            await ask(upstream)
            await upstream.close()
            await upstream.close()
            await asyncio.wait_for(server.connections[0].peer_gone.wait(), PATIENT_S)
            with pytest.raises(UpstreamUnavailableError):
                await upstream.open(post())
