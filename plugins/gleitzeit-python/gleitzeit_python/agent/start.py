"""Starts an agent: first the zygote, while there is little to fork, then all the rest."""

from __future__ import annotations

import json
import os

from gleitzeit_python.agent import frames, system
from gleitzeit_python.agent.zygote import Zygote


def main(parts: dict[str, str]) -> None:
    """Be an agent, whose options come in a first frame.

    Args:
        parts: This program, by the names of its modules.
    """
    # Only its owner ends it.
    system.block_signals("SIGINT", "SIGHUP")
    system.hide_memory()
    decoder = frames.Decoder()
    found: list[tuple[int, int, bytes]] = []
    while not found:
        data = os.read(0, 1 << 16)
        if not data:
            return
        found = decoder.feed(data)
    _, fence, content = found[0]
    options = json.loads(content)
    if os.geteuid() != 0:
        # Nobody else can become another user.
        options["user"] = None
    zygote = Zygote(options)
    # The zygote had no use for it.
    from gleitzeit_python.agent.agent import Agent  # noqa: PLC0415

    Agent(options, fence, parts, zygote).live()
