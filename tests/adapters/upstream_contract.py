"""The contract of `inference.upstream.Upstream`, as tests over real sockets.

A client is put under it by a subclass in a test module:

    class TestMyUpstream(UpstreamContract):
        make = MyUpstream       # a class, or staticmethod(function): see `MakeUpstream`
"""

from tests.adapters.upstream_contract_answers import AnswerContract
from tests.adapters.upstream_contract_ends import EndContract
from tests.adapters.upstream_contract_failures import FailureContract
from tests.adapters.upstream_contract_requests import RequestContract


class UpstreamContract(RequestContract, AnswerContract, FailureContract, EndContract):
    """All of it."""
