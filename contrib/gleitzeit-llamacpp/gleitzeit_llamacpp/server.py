"""The child process: one llama.cpp server. Run by the hub as ``python -m gleitzeit_llamacpp.server``.

It takes its settings as one JSON object on the command line, prints one JSON line when it listens (or when it cannot), and
lives until its standard input ends, it is told to terminate, or its parent dies, however that happens.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from typing import Any, Final

_PR_SET_PDEATHSIG: Final = 1


@dataclass(frozen=True, slots=True)
class Settings:
    """What a child is told.

    Args:
        path: The GGUF file.
        name: The model's name in answers.
        parent: Process id of the parent.
        slots: Requests at once.
        context: Tokens of context for each slot.
        threads: Threads that compute.
        gpu_layers: Layers on a GPU; -1 for all.
        embeddings: Whether it embeds.
    """

    path: str
    name: str
    parent: int
    slots: int
    context: int
    threads: int
    gpu_layers: int
    embeddings: bool

    def as_argument(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))


def main(argument: str) -> None:
    """Serve until there is nobody to serve for."""
    settings = Settings(**json.loads(argument))
    _die_with(settings.parent)
    # Ctrl-C reaches the whole foreground group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _terminate)
    with contextlib.suppress(SystemExit):
        server = _started(settings)
        # A parent that is gone, however it went, ends this.
        sys.stdin.buffer.read()
        del server
    # Native threads may still run, and there is nothing left to tidy up.
    os._exit(0)


def _die_with(parent: int) -> None:
    """Have the kernel end this process with its parent, where there is such a kernel."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _terminate(number: int, frame: object) -> None:
    del number, frame
    os._exit(0)


def _started(settings: Settings) -> Any:  # noqa: ANN401 - the library has no types
    try:
        server = _server(settings)
    except (ImportError, RuntimeError, ValueError, OSError) as error:
        _say({"error": f"{type(error).__name__}: {error}"})
        sys.exit(1)
    _say({"url": server.listening_address})
    return server


def _server(settings: Settings) -> Any:  # noqa: ANN401 - as above
    from xllamacpp import CommonParams, Server, llama_pooling_type  # noqa: PLC0415 - errors are reported

    params = CommonParams()
    params.model.path = settings.path
    params.model_alias = {settings.name}
    params.port = 0
    params.verbosity = 2
    params.n_parallel = settings.slots
    params.n_ctx = settings.context * settings.slots
    params.cpuparams.n_threads = settings.threads
    params.cpuparams_batch.n_threads = settings.threads
    params.n_gpu_layers = settings.gpu_layers if settings.gpu_layers >= 0 else 1_000_000
    params.warmup = False
    if settings.embeddings:
        params.embedding = True
        # Without one, /v1/embeddings refuses models that do not name a pooling of their own.
        params.pooling_type = llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    return Server(params)


def _say(message: dict[str, str]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
