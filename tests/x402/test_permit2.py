from x402.mechanisms.evm.constants import PERMIT2_ADDRESS as OFFICIAL_PERMIT2
from x402.mechanisms.evm.constants import X402_EXACT_PERMIT2_PROXY_ADDRESS

from obol.x402.eip712 import checksum_address
from obol.x402.permit2 import EXACT_PROXY, EXACT_PROXY_ADDRESS, PERMIT2_ADDRESS, allowance_advice
from tests.x402.samples import OBOL


def test_the_contracts_are_those_of_the_official_sdk() -> None:
    assert (OFFICIAL_PERMIT2, X402_EXACT_PERMIT2_PROXY_ADDRESS) == (PERMIT2_ADDRESS, EXACT_PROXY_ADDRESS)


def test_addresses_are_in_eip_55_and_the_comparable_one_in_lower_case() -> None:
    assert checksum_address(PERMIT2_ADDRESS) == PERMIT2_ADDRESS
    assert checksum_address(EXACT_PROXY) == EXACT_PROXY_ADDRESS


def test_the_advice_names_token_network_and_whom_to_allow() -> None:
    advice = allowance_advice(OBOL)
    assert all(word in advice for word in ("OBOL", "base-sepolia", OBOL.address, PERMIT2_ADDRESS))
