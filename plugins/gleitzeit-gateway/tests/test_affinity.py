"""What a caller names to keep requests together gets to the strategy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    import pytest

    from gleitzeit_gateway.testing import RunningGateway
    from gleitzeit_ollama.testing import OllamaServer

OBSERVER = """
import logging

from gleitzeit_core.hookspecs import hookimpl


@hookimpl
def gleitzeit_request_finished(finished):
    logging.getLogger("affinities").warning("%s %r", finished.request.method, finished.request.affinity)
"""
CHAT = {"model": "smollm2", "messages": [{"role": "user", "content": "hi"}], "stream": False}


async def test_the_header_names_it(
    serve: Callable[..., Awaitable[RunningGateway]],
    ollama: OllamaServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In a client API and in JSON-RPC alike; without it there is none."""
    (tmp_path / "observer.py").write_text(OBSERVER)
    gateway = await serve(ollama, files=[tmp_path / "observer.py"])
    call = {"jsonrpc": "2.0", "id": 1, "method": "llm/chat", "params": CHAT}
    for path, sent in (("/api/chat", CHAT), ("/v1/chat/completions", CHAT), ("/rpc", call)):
        for headers in ({"X-Gleitzeit-Affinity": "talk 7"}, {}):
            assert (await gateway.ask(path, sent, headers=headers)).status == 200
    seen = [record.getMessage() for record in caplog.records if record.name == "affinities"]
    assert seen == ["llm/chat 'talk 7'", "llm/chat ''"] * 3
