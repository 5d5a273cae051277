"""llama.cpp's own HTTP server as a process: `python -m obol.adapters.llamacpp_child FOLDER SLOTS`.

Writes the random-weight model into the folder if it is not there, serves it on a free port of 127.0.0.1, says the
address in one line on standard output, and ends when standard input ends: a parent that is gone, in whichever way,
no longer holds the pipe. Everything else that is printed, by C++ too, goes to standard error.

Needs the extra `demo`; only ever run, never imported by the rest.
"""

import os
import signal
import sys
import threading
from pathlib import Path

import xllamacpp

from obol.adapters.random_model import CONTEXT_TOKENS, MODEL_NAME, write_random_model


def main(folder: Path, slots: int) -> None:
    """Serves until standard input ends. Does not return."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent decides what it means
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    parent = threading.Thread(target=_end_with_parent, daemon=True)
    parent.start()
    model = folder / f"{MODEL_NAME}.gguf"
    if not model.exists():
        write_random_model(model)
    server = xllamacpp.Server(_parameters(model, slots))
    report.write(f"{server.listening_address}\n")
    report.close()
    parent.join()


def _parameters(model: Path, slots: int) -> xllamacpp.CommonParams:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model)
    parameters.model_alias = {MODEL_NAME}
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.n_parallel = slots
    parameters.n_ctx = CONTEXT_TOKENS * slots
    parameters.endpoint_metrics = True
    parameters.endpoint_slots = True
    parameters.warmup = False
    parameters.ui = False
    parameters.cpuparams.n_threads = 1  # a model this small only loses by sharing
    return parameters


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)  # at once: C++ threads may be in the middle of an answer


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
