"""What an upstream client sends, and the settings it refuses."""

import pytest

from obol.errors import SettingsError
from tests.adapters.upstream_testing import (
    BODY,
    OK,
    ContractBase,
    ask,
    get,
    has_ipv6,
    post,
)
from tests.components import missing
from tests.fakes.raw_server import (
    RawServer,
    answering,
)


class RequestContract(ContractBase):
    """What an upstream client sends, and the settings it refuses."""

    async def test_the_request_is_sent_as_it_is(self) -> None:
        headers = [("Content-Type", "application/json"), ("x-ODD-Name", "a"), ("X-Odd-Name", "b"), ("Accept", "*/*")]
        async with self.talking(answering(OK)) as (server, upstream):
            await ask(upstream, post("/v1/chat%2Fx/../y?a=%20b&c=&d", headers))
            head, _, body = bytes(server.connections[0].received).partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        assert lines[0] == b"POST /v1/chat%2Fx/../y?a=%20b&c=&d HTTP/1.1"
        sent = [line for line in lines[1:] if not line.lower().startswith((b"host:", b"content-length:"))]
        values = [tuple(line.split(b": ")) for line in sent]
        assert [(name.lower(), value) for name, value in values] == [
            (b"content-type", b"application/json"),
            (b"x-odd-name", b"a"),
            (b"x-odd-name", b"b"),
            (b"accept", b"*/*"),
        ]
        assert values[1][0] == b"x-ODD-Name"
        assert f"Host: 127.0.0.1:{server.url.rpartition(':')[2]}".encode() in lines
        assert f"Content-Length: {len(BODY)}".encode() in lines
        assert body == BODY

    async def test_no_header_is_invented(self) -> None:
        async with self.talking(answering(OK)) as (server, upstream):
            await ask(upstream, get())
            lines = bytes(server.connections[0].received).split(b"\r\n")
        assert [line.split(b":")[0].lower() for line in lines[1:] if line] == [b"host"]

    async def test_framing_and_hop_by_hop_headers_of_the_request_are_its_own(self) -> None:
        headers = [
            ("Host", "evil.test"),
            ("Content-Length", "999"),
            ("Transfer-Encoding", "chunked"),
            ("Connection", "close, X-Hop"),
            ("X-Hop", "1"),
            ("TE", "trailers"),
            ("Expect", "100-continue"),
        ]
        async with self.talking(answering(OK)) as (server, upstream):
            await ask(upstream, post(headers=headers))
            received = bytes(server.connections[0].received).lower()
        for gone in (b"evil", b"999", b"chunked", b"x-hop", b"trailers", b"expect", b"connection"):
            assert gone not in received

    async def test_a_header_that_is_not_text_does_not_fail_the_request(self) -> None:
        headers = [("X-Raw", b"\xff".decode("utf-8", "surrogateescape")), ("X-Text", "ünïcode")]
        async with self.talking(answering(OK)) as (server, upstream):
            assert await ask(upstream, post(headers=headers)) == (200, b"ok")
            assert "X-Text: ünïcode".encode() in bytes(server.connections[0].received)

    async def test_the_sellers_credential_replaces_any_other_and_is_never_shown(self) -> None:
        async with (
            RawServer(answering(OK)) as server,
            self.client(server.url, authorization="Bearer seller-secret") as upstream,
        ):
            await ask(upstream, post(headers=[("AUTHORIZATION", "Bearer buyer")]))
            received = bytes(server.connections[0].received)
            assert "seller-secret" not in f"{upstream!r} {upstream}"
        assert b"Authorization: Bearer seller-secret\r\n" in received
        assert b"buyer" not in received

    @pytest.mark.parametrize(
        ("target", "line"),
        [
            ("//evil.test/x", b"POST /prefix//evil.test/x HTTP/1.1"),
            ("/@evil.test", b"POST /prefix/@evil.test HTTP/1.1"),
            ("/a b#c", b"POST /prefix/a%20b%23c HTTP/1.1"),
            ("/a?x=\r\nEvil: 1", b"POST /prefix/a?x=%0D%0AEvil:%201 HTTP/1.1"),
            ("/a?x=é\udcff", b"POST /prefix/a?x=%C3%A9%FF HTTP/1.1"),
        ],
    )
    async def test_a_target_never_leaves_its_line_or_its_host(self, target: str, line: bytes) -> None:
        async with RawServer(answering(OK)) as server, self.client(f"{server.url}/prefix/") as upstream:
            await ask(upstream, post(target))
            head = bytes(server.connections[0].received).split(b"\r\n\r\n")[0]
        assert head.split(b"\r\n")[0] == line
        assert b"\nEvil" not in head

    async def test_a_target_that_would_name_another_host_is_refused(self) -> None:
        async with self.talking(answering(OK)) as (server, upstream):
            with pytest.raises(ValueError, match="slash"):
                await upstream.open(post("@127.0.0.2/x"))
            assert server.connections == []

    async def test_a_large_body_arrives_whole(self) -> None:
        body = bytes(range(256)) * 4 * 1024 * 3
        async with self.talking(answering(OK)) as (server, upstream):
            assert await ask(upstream, post(body=body)) == (200, b"ok")
            assert server.connections[0].received.endswith(body)

    async def test_an_ipv6_upstream_is_reached(self) -> None:
        if not has_ipv6():
            missing("IPv6 on the loopback interface", "sysctl net.ipv6.conf.lo.disable_ipv6=0")
        async with RawServer(answering(OK), host="::1") as server, self.client(server.url) as upstream:
            assert await ask(upstream) == (200, b"ok")
            assert f"Host: [::1]:{server.port}".encode() in bytes(server.connections[0].received)

    @pytest.mark.parametrize(
        "url",
        [
            "http://user:hunter2@127.0.0.1:8000",
            "http://user@127.0.0.1:8000",
            "http://:hunter2@127.0.0.1:8000",
            "localhost:8000",
            "ftp://127.0.0.1",
            "unix:///run/model.sock",
            "http://",
            "",
            "http://127.0.0.1:99999",
            "http://127.0.0.1:0",
            "http://127.0.0.1:8000/?a=1",
            "http://127.0.0.1:8000/#a",
            "http://[::1",
        ],
    )
    def test_a_url_that_cannot_be_used_is_refused(self, url: str) -> None:
        with pytest.raises(SettingsError) as caught:
            self.make(url)
        assert caught.value.field == "--upstream"
        assert "hunter2" not in str(caught.value)

    @pytest.mark.parametrize("value", ["", "Bearer a\r\nEvil: 1", "Bearer é", "Bearer hunter2\n"])
    def test_a_credential_that_cannot_be_sent_is_refused(self, value: str) -> None:
        with pytest.raises(SettingsError) as caught:
            self.make("http://127.0.0.1:8000", authorization=value)
        assert caught.value.field == "--upstream-auth-env"
        assert "hunter2" not in str(caught.value)
