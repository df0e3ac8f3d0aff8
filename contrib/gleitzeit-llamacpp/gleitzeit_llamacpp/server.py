"""The child process: one llama.cpp server. Run by the hub as ``python -m gleitzeit_llamacpp.server``.

It takes its settings as one JSON object on the command line, prints one JSON line when it listens (or when it cannot),
and lives until its standard input ends, it is told to terminate, or its parent dies, however that happens.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from gleitzeit_llamacpp.gguf import read_header

_PR_SET_PDEATHSIG: Final = 1
_STDOUT, _STDERR = 1, 2
# llama.cpp keeps prompts it has read, by default up to 8 GiB of them in each process.
_CACHE_MIB: Final = 256
# Low, because with llama.cpp's own defaults some answers of so small a model ramble on without an end.
_CALM_TEMPERATURE: Final = 0.2
_CALM_TOP_P: Final = 0.9


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
        calm: Whether to sample as is good for the packaged model, where a caller says nothing of it.
    """

    path: str
    name: str
    parent: int
    slots: int
    context: int
    threads: int
    gpu_layers: int
    embeddings: bool
    calm: bool = False

    def as_argument(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))


def main(argument: str) -> None:
    """Serve until there is nobody to serve for."""
    settings = Settings(**json.loads(argument))
    _die_with(settings.parent)
    _own_signals()
    answers = os.dup(_STDOUT)
    os.dup2(_STDERR, _STDOUT)  # whatever the native code prints is no answer
    try:
        server = _server(settings)
    except (ImportError, RuntimeError, ValueError, OSError) as error:
        _say(answers, {"error": f"{type(error).__name__}: {error}"})
        os._exit(1)
    # Some versions of llama.cpp put handlers of their own in place while they load.
    _own_signals()
    _say(answers, {"url": server.listening_address})
    # A parent that is gone, however it went, ends this.
    sys.stdin.buffer.read()
    # Native threads may still run, and there is nothing left to tidy up.
    os._exit(0)


def _die_with(parent: int) -> None:
    """Have the kernel end this process with its parent, where there is such a kernel."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _own_signals() -> None:
    """Ctrl-C is for the parent to decide on. SIGTERM ends even a process that loads, where no handler would run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _server(settings: Settings) -> Any:  # noqa: ANN401 - the library has no types
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
    params.cache_ram_mib = _CACHE_MIB
    params.embedding = settings.embeddings
    if settings.calm:
        params.sampling.temp, params.sampling.top_p = _CALM_TEMPERATURE, _CALM_TOP_P
    # A model made to embed says how its vectors are pooled. For the others /v1/embeddings wants to be told.
    if settings.embeddings and not any(key.endswith(".pooling_type") for key in read_header(Path(settings.path))):
        params.pooling_type = llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    # The web page, which nobody asks for here; newer versions call it differently.
    setattr(params, "ui" if hasattr(params, "ui") else "webui", False)
    return Server(params)


def _say(answers: int, message: dict[str, str]) -> None:
    os.write(answers, json.dumps(message).encode() + b"\n")
    os.close(answers)


if __name__ == "__main__":
    main(sys.argv[1])
