from hypothesis import given
from hypothesis import strategies as st

from obol.core.money import UINT256_MAX
from obol.x402.authorization import Authorization, Permit, parse_authorization, parse_signature
from obol.x402.wire_form import wire_form

addresses = st.binary(min_size=20, max_size=20).map(lambda raw: "0x" + raw.hex())
numbers = st.integers(0, UINT256_MAX)
authorizations = st.builds(
    Authorization,
    payer=addresses,
    to=addresses,
    value_atomic=numbers,
    valid_after_s=numbers,
    valid_before_s=numbers,
    nonce=st.binary(min_size=32, max_size=32).map(lambda raw: "0x" + raw.hex()),
    permit=st.none() | st.builds(Permit, token=addresses, spender=addresses),
)


@given(authorizations, st.binary(min_size=1, max_size=100))
def test_what_is_written_is_read_back(authorization: Authorization, signature: bytes) -> None:
    wire = wire_form(authorization, signature)
    assert authorization == parse_authorization(wire)
    assert signature == parse_signature(wire)
