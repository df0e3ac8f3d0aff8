"""`python -m gleitzeit_ollama.testing`: the stand-in as a process; its URL is the first line out."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import signal
import sys
from typing import TYPE_CHECKING

from gleitzeit_ollama.testing.gates import Gate, Pace
from gleitzeit_ollama.testing.replies import echo, fixed
from gleitzeit_ollama.testing.script import fault_from_json
from gleitzeit_ollama.testing.server import DEFAULT_MODELS, OllamaServer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gleitzeit_ollama.testing.faults import Fault
    from gleitzeit_ollama.testing.gates import TokenGate

_PR_SET_PDEATHSIG = 1
_MAX_PORT = 65535


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gleitzeit_ollama.testing",
        description="A stand-in Ollama server. Its URL is the first line it prints.",
    )
    parser.add_argument(
        "serve", nargs="?", choices=["serve"], help="listen where OLLAMA_HOST says, as `ollama serve` does"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="0 (the default) for any free one")
    parser.add_argument(
        "--models",
        default=",".join(DEFAULT_MODELS),
        help="names with commas between; NAME+tools+thinking for one that can more",
    )
    parser.add_argument("--num-parallel", type=int, default=4, help="slots of a model")
    parser.add_argument("--max-queue", type=int, default=512, help="requests waiting for a load")
    parser.add_argument("--reply", help="say this text always (default: repeat the question)")
    parser.add_argument(
        "--pullable",
        type=json.loads,
        metavar="JSON",
        help='what can be pulled, with sizes in bytes: {"tiny": 3000000}',
    )
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument("--token-delay-ms", type=float, default=0.0, help="pause before each token")
    pace.add_argument("--gate", action="store_true", help="hold each token until it is let out")
    parser.add_argument(
        "--fault",
        type=_fault,
        action="append",
        default=[],
        metavar="JSON",
        help='all requests to models meet it: {"kind": "stall_after", "n_parts": 2}',
    )
    parser.add_argument(
        "--die-with-parent",
        action="store_true",
        help="end when the parent process ends or standard input is closed",
    )
    return parser


def _fault(text: str) -> Fault:
    try:
        sent = json.loads(text)
        return fault_from_json(sent if isinstance(sent, dict) else {"kind": text})
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _gate(options: argparse.Namespace) -> TokenGate | None:
    if options.gate:
        return Gate()
    return Pace(options.token_delay_ms / 1000) if options.token_delay_ms else None


def _server(options: argparse.Namespace) -> OllamaServer:
    server = OllamaServer(
        host=options.host,
        port=options.port,
        models=[name for name in options.models.split(",") if name],
        reply=echo if options.reply is None else fixed(options.reply),
        gate=_gate(options),
        num_parallel=options.num_parallel,
        max_queue=options.max_queue,
        registry=options.pullable,
    )
    server.admin = True
    for fault in options.fault:
        server.script.always(fault)
    return server


def _die_with_parent() -> None:
    # The kernel's own promise; it holds for a parent killed by SIGKILL, and for a stopped child.
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


async def _serve(server: OllamaServer, *, watch_stdin: bool) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    if watch_stdin:
        loop.add_reader(sys.stdin.fileno(), _end_at_eof, ended)
    async with server:
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        await ended.wait()


def _end_at_eof(ended: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 4096):
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
        ended.set()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.serve:
        options.host, _, port = os.environ.get("OLLAMA_HOST", "").rpartition(":")
        if not port.isdecimal() or int(port) > _MAX_PORT:
            parser.error("OLLAMA_HOST must be an address and a port")
        options.port = int(port)
    if options.die_with_parent:
        _die_with_parent()
    try:
        asyncio.run(_serve(_server(options), watch_stdin=options.die_with_parent))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
