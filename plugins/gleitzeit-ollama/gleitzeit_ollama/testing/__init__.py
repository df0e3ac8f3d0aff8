"""A stand-in for an Ollama 0.24.0 server, for tests of whatever talks to one.

It answers as the recordings of a real one do, misbehaves as a script says, and shows what it saw:

    async with OllamaServer(models=["smollm2"]) as server:
        server.script.next(StallAfter(n_parts=2))
        ...  # talk to server.url
        await server.wait_for(lambda server: server.held == 1)

`OllamaProcess` is the same in a process of its own. `python -m gleitzeit_ollama.testing` starts
one by hand.
"""

from __future__ import annotations

from gleitzeit_ollama.testing.answers import Plain
from gleitzeit_ollama.testing.exchange import Exchange
from gleitzeit_ollama.testing.faults import (
    Busy,
    Cut,
    DropAfter,
    DropBeforeHeaders,
    End,
    ErrorLineAfter,
    Fault,
    Garbage,
    Hang,
    HangBeforeHeaders,
    Holding,
    SlowLoad,
    StallAfter,
    Status,
    TruncateAfter,
    Unauthorized,
)
from gleitzeit_ollama.testing.gates import Gate, Pace, TokenGate
from gleitzeit_ollama.testing.models import Catalogue, Model
from gleitzeit_ollama.testing.process import OllamaProcess, ProcessFailed, ProcessOptions
from gleitzeit_ollama.testing.recorded import Recording, recording, recording_names
from gleitzeit_ollama.testing.records import RequestRecord
from gleitzeit_ollama.testing.replies import Ask, Reply, ReplyFunction, ToolCall, echo, fixed
from gleitzeit_ollama.testing.runners import Runner, Runners
from gleitzeit_ollama.testing.script import Script
from gleitzeit_ollama.testing.server import OllamaServer

__all__ = [
    "Ask",
    "Busy",
    "Catalogue",
    "Cut",
    "DropAfter",
    "DropBeforeHeaders",
    "End",
    "ErrorLineAfter",
    "Exchange",
    "Fault",
    "Garbage",
    "Gate",
    "Hang",
    "HangBeforeHeaders",
    "Holding",
    "Model",
    "OllamaProcess",
    "OllamaServer",
    "Pace",
    "Plain",
    "ProcessFailed",
    "ProcessOptions",
    "Recording",
    "Reply",
    "ReplyFunction",
    "RequestRecord",
    "Runner",
    "Runners",
    "Script",
    "SlowLoad",
    "StallAfter",
    "Status",
    "TokenGate",
    "ToolCall",
    "TruncateAfter",
    "Unauthorized",
    "echo",
    "fixed",
    "recording",
    "recording_names",
]
