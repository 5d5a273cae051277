"""Outside components that some tests need: found, or skipped by name; never skipped where CI has them all."""

import os
from pathlib import Path

import pytest


def components_dir() -> Path:
    """Where `scripts/components` installs."""
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("OBOL_COMPONENTS") or Path(cache) / "obol" / "components")


def missing(component: str, command: str) -> None:
    """Skip the test and name the command that provides the component; fail instead where everything must be there."""
    message = f"needs {component}: run `{command}`"
    if os.environ.get("OBOL_REQUIRE_COMPONENTS"):
        pytest.fail(message, pytrace=False)
    pytest.skip(message)
