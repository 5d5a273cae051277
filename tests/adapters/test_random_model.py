import importlib
from pathlib import Path
from typing import Any

import pytest

from tests.components import missing


@pytest.fixture
def modules() -> tuple[Any, Any]:
    """The writer under test and gguf's reader."""
    try:
        return importlib.import_module("obol.adapters.random_model"), importlib.import_module("gguf")
    except ImportError:
        missing("gguf and numpy", "pip install 'obol-inference[demo]'")
        raise


def test_the_model_is_the_same_every_time_and_small(modules: tuple[Any, Any], tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    written = []
    for _ in range(2):
        modules[0].write_random_model(model)
        written.append(model.read_bytes())
    assert written[0] == written[1]
    assert 100_000 < len(written[0]) < 1_000_000
    assert list(tmp_path.iterdir()) == [model]


def test_every_byte_has_a_token_of_its_own(modules: tuple[Any, Any], tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    modules[0].write_random_model(model)
    field = modules[1].GGUFReader(model).fields["tokenizer.ggml.tokens"]
    tokens = [bytes(field.parts[index]).decode() for index in field.data]
    assert len(set(tokens)) == len(tokens) == 256 + 3
    assert tokens[ord("a")] == "a"
    assert tokens[ord(" ")] == "Ġ"
