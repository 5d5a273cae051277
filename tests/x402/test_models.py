import msgspec

from obol.x402.models import ExactPayload

WIRE = (
    b'{"signature":"0xabcd","authorization":{"from":"0x1","to":"0x2","value":"1","validAfter":"0",'
    b'"validBefore":"9","nonce":"0x3"}}'
)


def test_a_signature_is_not_in_the_repr_of_what_holds_it() -> None:
    assert "0xabcd" not in repr(msgspec.json.decode(WIRE, type=ExactPayload))


def test_the_wire_form_keeps_the_signature() -> None:
    payload = msgspec.json.decode(WIRE, type=ExactPayload)
    assert msgspec.json.decode(msgspec.json.encode(payload)) == msgspec.json.decode(WIRE)
