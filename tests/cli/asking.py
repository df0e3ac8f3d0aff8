"""The commands that ask a gateway for something, and what it says to one of them."""

from __future__ import annotations

from typing import Any

import pytest

CHAT = ["chat", "-m", "tiny", "hi"]
RUN = ["run", "echo/say"]
STREAM = ["run", "echo/say", "--stream"]
ASKING = {
    "status": (["status"], "GET /admin/status"),
    "instances": (["instances"], "GET /admin/status"),
    "models": (["models"], "GET /api/tags"),
    "chat": (CHAT, "POST /api/chat"),
    "run": (RUN, "POST /rpc"),
    "stream": (STREAM, "POST /rpc"),
    "queues": (["queues"], "GET /admin/queues"),
    "metrics": (["metrics"], "GET /admin/metrics?window=recent"),
    "top": (["top"], "GET /admin/status"),
    "usage": (["usage"], "GET /admin/usage?by=key&window=total"),
    "reload": (["reload"], "POST /admin/reload"),
    "events": (["events", "--once"], "GET /admin/events"),
    "add": (["instances", "add", "http://gpu3:11434"], "POST /admin/instances"),
    "drain": (["instances", "drain", "gpu1"], "GET /admin/instances"),
}
EVERY = pytest.mark.parametrize(("arguments", "what"), ASKING.values(), ids=list(ASKING))


def part(text: str, *, done: bool = False) -> dict[str, Any]:
    """One part of a chat."""
    return {"model": "tiny", "message": {"role": "assistant", "content": text}, "done": done}
