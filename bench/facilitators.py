"""The measured facilitators: ours as `obol facilitator run` starts it, and the official one in two forms."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import chain, official_facilitator
from bench.machine import OTHERS_CORE, SUBJECT_CORE
from bench.programs import HOST, Program, free_port, running
from obol.adapters.signer_local import LocalSigner

OBOL = "obol"
OFFICIAL = "official"
"""In threads, which is kinder to it than its own example."""
EXAMPLE = "official's example"
_FORMS = {OFFICIAL: official_facilitator.IN_THREADS, EXAMPLE: official_facilitator.AS_IN_ITS_EXAMPLE}


@dataclass(frozen=True, slots=True)
class Settling:
    """A facilitator under measurement, the node it settles on, and the RPC that it was given: perhaps a proxy's."""

    name: str
    program: Program
    node: Program


@contextmanager
def facilitator(
    name: str, node: Program, folder: Path, *, rpc: Program | None = None, options: Sequence[str] = ()
) -> Iterator[Settling]:
    """With a key of its own that has plenty of gas. `rpc`: what it asks instead of the node itself.

    `options` are of `obol facilitator run`.
    """
    folder.mkdir()
    port, signer = free_port(), LocalSigner.generate()
    chain.give_gas(node, signer.address)
    url = (rpc or node).url
    if name == OBOL:
        signer.write_key_file(folder / "key")
        command = [sys.executable, "-m", "obol", "facilitator", "run", "--rpc", url, "--key-file", str(folder / "key")]
        command += ["--listen", f"{HOST}:{port}", "--data-dir", str(folder / "data"), *options]
    else:
        command = [sys.executable, "-m", "bench.official_facilitator", str(port), url, signer.secret.hex()]
        command += [_FORMS[name]]
    with running(command, port=port, core=SUBJECT_CORE, log=folder / "facilitator.log") as program:
        yield Settling(name, program, node)


@contextmanager
def counting_rpc(node: Program, folder: Path, *, delay_s: float = 0.0) -> Iterator[Program]:
    """A proxy before a node that counts what is asked, and answers that much later: see `bench.rpc_counter`."""
    port = free_port()
    command = [sys.executable, "-m", "bench.rpc_counter", str(port), node.url, str(delay_s)]
    with running(command, port=port, core=OTHERS_CORE, log=folder / "rpc_counter.log") as program:
        yield program
