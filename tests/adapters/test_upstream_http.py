"""aiohttp's client under the contract of the upstream port, and against a model server."""

from obol.adapters.upstream_http import HttpUpstream
from tests.adapters.upstream_contract import UpstreamContract


class TestHttpUpstream(UpstreamContract):
    make = HttpUpstream
