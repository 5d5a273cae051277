"""Reading a client's JSON object so that no other parser can read it differently.

Parsers disagree on a repeated name (first or last wins), on letter case (Go matches names case-insensitively, with
Unicode folding) and a name can hide behind escapes. What we check must be what the upstream acts on, so such objects
are refused. Values are kept as the client's bytes: numbers, escapes and unknown fields survive untouched.
"""

import re
from collections.abc import Set as AbstractSet

import msgspec

from obol.errors import MalformedRequestError
from obol.inference.nesting import is_nested_too_deeply

MAX_MEMBERS = 256
"""Names in one object; the inference APIs know fewer than a hundred."""

_FIRST = re.compile(rb'[ \t\r\n]*\{[ \t\r\n]*"([^"\\]*)"[ \t\r\n]*:[ \t\r\n]*')
_NEXT = re.compile(rb'[ \t\r\n]*,[ \t\r\n]*"([^"\\]*)"[ \t\r\n]*:[ \t\r\n]*')
_END = re.compile(rb"[ \t\r\n]*\}[ \t\r\n]*")
_DECODER = msgspec.json.Decoder(dict[str, msgspec.Raw])

Members = dict[str, msgspec.Raw]


def read_members(text: bytes, relevant: AbstractSet[str], *, param: str | None = None) -> Members:
    """The members of a JSON object, values unread.

    `relevant` are the names (lower case) that may not be spelled in another letter case; `param` names the object in
    errors. Raises `MalformedRequestError`: not JSON, not an object, nested too deeply, too many or ambiguous names.
    """
    if is_nested_too_deeply(text):
        raise MalformedRequestError("the JSON is nested too deeply", param=param, reason="invalid_json")
    try:
        members = _DECODER.decode(text)
    except msgspec.ValidationError as error:
        raise MalformedRequestError("a JSON object is expected", param=param, reason="invalid_type") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedRequestError("the body is not valid JSON", param=param, reason="invalid_json") from error
    except RecursionError as error:
        raise MalformedRequestError("the JSON is nested too deeply", param=param, reason="invalid_json") from error
    if len(members) > MAX_MEMBERS:
        raise MalformedRequestError("too many fields in one object", param=param, reason="too_many_parameters")
    _refuse_case_variants(members, relevant)
    if not _spells(text, members):
        repeated = next((name for name in members if text.count(b'"%b"' % name.encode()) > 1), param)
        message = "a field is given twice, or its name is written with escapes"
        raise MalformedRequestError(message, param=repeated, reason="duplicate_parameter")
    return members


def _refuse_case_variants(members: Members, relevant: AbstractSet[str]) -> None:
    for name in members:
        folded = name.casefold()
        if folded != name and folded in relevant:
            message = f"write the field {folded} in lower case"
            raise MalformedRequestError(message, param=folded, reason="invalid_parameter_name")


def _spells(text: bytes, members: Members) -> bool:
    """True when `text` is exactly these members in this order: so no name is repeated and none is escaped.

    A repeated name leaves bytes that the decoded members do not account for; an escaped one is not spelled as decoded.
    """
    position, lead = 0, _FIRST
    for name, value in members.items():
        found = lead.match(text, position)
        if found is None or found[1] != name.encode():
            return False
        position = found.end()
        if not text.startswith(value, position):
            return False
        position, lead = position + len(memoryview(value)), _NEXT
    return not members or _END.fullmatch(text, position) is not None
