"""Payments bent in every way that a payment can be: the same one in other bytes, junk, and tampered ones."""

import base64
import json
from collections.abc import Callable
from typing import Any

from tests.gateway.shop import PRICE_ATOMIC, Json, Shop

HALF_N = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0
N = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def encoded(value: Any, **dumping: Any) -> str:
    return base64.b64encode(json.dumps(value, **dumping).encode()).decode()


def wire(shop: Shop) -> Json:
    """A good v2 payment as a JSON value."""
    (header,) = shop.payment().values()
    value: Json = json.loads(base64.b64decode(header))
    return value


def v2(value: Json, **dumping: Any) -> dict[str, str]:
    return {"PAYMENT-SIGNATURE": encoded(value, **dumping)}


def v1(value: Json) -> dict[str, str]:
    body = {"x402Version": 1, "scheme": "exact", "network": "base-sepolia", "payload": value["payload"]}
    return {"X-PAYMENT": encoded(body)}


def with_authorization(value: Json, /, **changes: Any) -> Json:
    authorization = value["payload"]["authorization"] | changes
    return value | {"payload": value["payload"] | {"authorization": authorization}}


def with_signature(value: Json, change: Callable[[bytes], bytes]) -> Json:
    signature = change(bytes.fromhex(value["payload"]["signature"][2:]))
    return value | {"payload": value["payload"] | {"signature": "0x" + signature.hex()}}


def reversed_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reversed_keys(value[key]) for key in reversed(value)}
    return value


def in_case(value: Json, change: Callable[[str], str]) -> Json:
    changed = {name: "0x" + change(value["payload"]["authorization"][name][2:]) for name in ("from", "to", "nonce")}
    accepted = value["accepted"] | {name: "0x" + change(value["accepted"][name][2:]) for name in ("asset", "payTo")}
    return with_authorization(value, **changed) | {"accepted": accepted}


def low_v(signature: bytes) -> bytes:
    return signature[:64] + bytes((signature[64] - 27,))


def high_s(signature: bytes) -> bytes:
    s = int.from_bytes(signature[32:64], "big")
    assert s <= HALF_N
    return signature[:32] + (N - s).to_bytes(32, "big") + bytes((55 - signature[64],))


def base64url(value: Json) -> dict[str, str]:
    padded = value | {"note": "\x7f??>>~~"}  # so that the alphabets differ
    return {"PAYMENT-SIGNATURE": base64.urlsafe_b64encode(json.dumps(padded).encode()).decode()}


def named_network(value: Json) -> Json:
    return value | {"accepted": value["accepted"] | {"network": "base-sepolia"}}


SAME: dict[str, Callable[[Json], dict[str, str]]] = {
    "other key order": lambda value: v2(reversed_keys(value)),
    "blanks": lambda value: v2(value, indent=4),
    "no blanks": lambda value: v2(value, separators=(",", ":")),
    "escapes": lambda value: {
        "PAYMENT-SIGNATURE": base64.b64encode(json.dumps(value).replace("exact", "\\u0065xact").encode()).decode()
    },
    "unknown fields": lambda value: v2(value | {"extensions": {"a": 1}, "resource": {"url": "http://x/"}}),
    "url alphabet": base64url,
    "no padding": lambda value: {"PAYMENT-SIGNATURE": encoded(value | {"n": ""}).rstrip("=")},
    "v1 form": v1,
    "v1 form in the v2 header": lambda value: {"PAYMENT-SIGNATURE": v1(value)["X-PAYMENT"]},
    "v2 form in the v1 header": lambda value: {"X-PAYMENT": encoded(value)},
    "both forms": lambda value: v1(value) | v2(value),
    "lower-case addresses": lambda value: v2(in_case(value, str.lower)),
    "upper-case addresses": lambda value: v2(in_case(value, str.upper)),
    "network by its name": lambda value: v2(named_network(value)),
    "v of 0 or 1": lambda value: v2(with_signature(value, low_v)),
}
"""The same authorization in other bytes."""


def bomb(depth: int) -> str:
    return base64.b64encode(b'{"x402Version":2,"payload":' + b"[" * depth + b"]" * depth + b"}").decode()


def duplicate_key(value: Json) -> str:
    text = json.dumps(value).replace('"value":', '"value": "1", "value":', 1)
    return base64.b64encode(text.encode()).decode()


JUNK: dict[str, Callable[[Json], str]] = {
    "empty": lambda _: "",
    "words": lambda _: "pay you later",
    "a star": lambda _: "*",
    "not base64": lambda value: encoded(value)[:-4] + "!!!!",
    "cut": lambda value: encoded(value)[:-40],
    "too much padding": lambda value: encoded(value).rstrip("=") + "====",
    "not JSON": lambda _: base64.b64encode(b"payment").decode(),
    "not UTF-8": lambda _: base64.b64encode(b'{"x402Version":2,"a":"\xff\xfe"}').decode(),
    "null": lambda _: encoded(None),
    "a list": lambda value: encoded([value]),
    "a number": lambda _: encoded(2),
    "two values": lambda value: base64.b64encode((json.dumps(value) * 2).encode()).decode(),
    "nothing in it": lambda _: encoded({}),
    "no version": lambda value: encoded({k: v for k, v in value.items() if k != "x402Version"}),
    "version 3": lambda value: encoded(value | {"x402Version": 3}),
    "version two in words": lambda value: encoded(value | {"x402Version": "2"}),
    "no accepted": lambda value: encoded({k: v for k, v in value.items() if k != "accepted"}),
    "no payload": lambda value: encoded({k: v for k, v in value.items() if k != "payload"}),
    "oversize": lambda value: encoded(value | {"pad": "x" * 13_000}),
    "deep": lambda _: bomb(5000),
    "a key twice": duplicate_key,
    "value as a float": lambda value: encoded(with_authorization(value, value=float(PRICE_ATOMIC))),
    "value as an integer": lambda value: encoded(with_authorization(value, value=PRICE_ATOMIC)),
    "value 1e4": lambda value: encoded(with_authorization(value, value="1e4")),
    "value +": lambda value: encoded(with_authorization(value, value=f"+{PRICE_ATOMIC}")),
    "value with a zero before": lambda value: encoded(with_authorization(value, value=f"0{PRICE_ATOMIC}")),
    "value with a blank": lambda value: encoded(with_authorization(value, value=f" {PRICE_ATOMIC}")),
    "value in hex": lambda value: encoded(with_authorization(value, value=hex(PRICE_ATOMIC))),
    "value in other digits": lambda value: encoded(with_authorization(value, value="١٠٠٠٠")),
    "value above uint256": lambda value: encoded(with_authorization(value, value=str(2**256))),
    "a negative value": lambda value: encoded(with_authorization(value, value=f"-{PRICE_ATOMIC}")),
    "validBefore as a float": lambda value: encoded(with_authorization(value, validBefore="2e9")),
    "validAfter negative": lambda value: encoded(with_authorization(value, validAfter="-1")),
    "a short nonce": lambda value: encoded(with_authorization(value, nonce="0x01")),
    "a nonce without 0x": lambda value: encoded(with_authorization(value, nonce="ab" * 32)),
    "a nonce with a blank": lambda value: encoded(with_authorization(value, nonce="0x" + "ab" * 31 + " a")),
    "a short payer": lambda value: encoded(with_authorization(value, **{"from": "0x11"})),
    "a signature that is no hex": lambda value: encoded(
        value | {"payload": value["payload"] | {"signature": "0x" + "zz" * 65}}
    ),
    "no signature": lambda value: encoded(value | {"payload": value["payload"] | {"signature": "0x"}}),
}


UNWANTED: dict[str, Callable[[Json], Json]] = {
    "a value of zero": lambda value: with_authorization(value, value="0"),
    "one unit less": lambda value: with_authorization(value, value=str(PRICE_ATOMIC - 1)),
    "one unit more": lambda value: with_authorization(value, value=str(PRICE_ATOMIC + 1)),
    "the most there is": lambda value: with_authorization(value, value=str(2**256 - 1)),
    "another payee": lambda value: with_authorization(value, to="0x" + "22" * 20),
    "another payer": lambda value: with_authorization(value, **{"from": "0x" + "22" * 20}),
    "another nonce": lambda value: with_authorization(value, nonce="0x" + "22" * 32),
    "a longer window": lambda value: with_authorization(value, validBefore=str(2**200)),
    "v of 29": lambda value: with_signature(value, lambda signature: signature[:64] + b"\x1d"),
    "r of zero": lambda value: with_signature(value, lambda signature: bytes(32) + signature[32:]),
    "s of zero": lambda value: with_signature(value, lambda signature: signature[:32] + bytes(32) + signature[64:]),
    "s of n": lambda value: with_signature(
        value, lambda signature: signature[:32] + N.to_bytes(32, "big") + signature[64:]
    ),
    "a cut signature": lambda value: with_signature(value, lambda signature: signature[:64]),
    "a long signature": lambda value: with_signature(value, lambda signature: signature * 4),
    "another amount accepted": lambda value: value | {"accepted": value["accepted"] | {"amount": "1"}},
    "another payee accepted": lambda value: value | {"accepted": value["accepted"] | {"payTo": "0x" + "22" * 20}},
    "another asset accepted": lambda value: value | {"accepted": value["accepted"] | {"asset": "0x" + "22" * 20}},
    "another network accepted": lambda value: value | {"accepted": value["accepted"] | {"network": "eip155:1"}},
    "another domain accepted": lambda value: (
        value | {"accepted": value["accepted"] | {"extra": {"name": "Fake", "version": "2"}}}
    ),
}
"""Readable payments whose signature no longer fits, or that are for something else."""
