import inspect
import re

import pytest

from obol import errors
from obol.errors import IllegalTransitionError, MalformedRequestError, ObolError, SettingsError

CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, BaseException) and value.__module__ == errors.__name__
}


def drawn_tree() -> dict[str, str]:
    """Parent of every class in the docstring's drawing; a level is three columns wide."""
    parents: dict[str, str] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.fullmatch(r" {4}((?:[│ ] {2})*(?:[├└]─ )?)(\w+Error)\b.*", line)
        if match is None:
            continue
        level = len(match[1]) // 3
        above[level:] = [match[2]]
        parents[match[2]] = above[level - 1] if level else "Exception"
    return parents


def test_the_drawn_tree_is_the_tree() -> None:
    assert drawn_tree() == {name: cls.__bases__[0].__name__ for name, cls in CLASSES.items()}


def test_every_class_has_one_parent_a_docstring_and_a_reason_of_its_own() -> None:
    for cls in CLASSES.values():
        assert len(cls.__bases__) == 1
        assert cls.__doc__
        assert re.fullmatch(r"[a-z][a-z_]*", cls.__dict__["reason"])
    reasons = [cls.__dict__["reason"] for cls in CLASSES.values()]
    assert len(reasons) == len(set(reasons))


def test_a_reason_can_be_narrowed_for_one_error_only() -> None:
    assert ObolError("text", reason="narrow").reason == "narrow"
    assert ObolError("text").reason == "internal"
    assert MalformedRequestError("text", reason="model_missing").reason == "model_missing"
    assert IllegalTransitionError("text").reason == "illegal_transition"


def test_a_settings_error_names_its_field() -> None:
    error = SettingsError("--price", "must be above 0")

    assert (str(error), error.field, error.reason) == ("--price: must be above 0", "--price", "invalid_settings")


@pytest.mark.parametrize("param", [None, "max_tokens"])
def test_a_malformed_request_names_its_json_field(param: str | None) -> None:
    assert MalformedRequestError("text", param=param).param == param
