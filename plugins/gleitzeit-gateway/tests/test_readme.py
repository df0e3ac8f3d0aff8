"""What the README says is tried out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gleitzeit_gateway.testing import RunningGateway
    from gleitzeit_ollama.testing import OllamaServer

    Serve = Callable[..., Awaitable[RunningGateway]]

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


async def test_plugin_in_the_readme(serve: Serve, ollama: OllamaServer, tmp_path: Path) -> None:
    """The plugin that is shown works as it stands."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "hello.py").write_text(code)
    gateway = await serve(ollama, files=[tmp_path / "hello.py"])
    assert (await gateway.ask("/hello")).json == {"hello": "stranger"}


async def test_paths_in_the_readme(serve: Serve, ollama: OllamaServer) -> None:
    """Every path in the table is an endpoint, and those that need an Ollama in the pool say so without one."""
    gateway = await serve(ollama)
    table, missing = re.findall(r"^\| `/.*\|$", README, re.MULTILINE), re.findall(r"`(/api/pull)`", README)
    found = [path for row in table for path in re.findall(r"`(/[^`]*)`", row.split(" | ")[0])]
    paths = [path for path in found if not path.endswith("...")]
    assert len(paths) == 30
    for path in paths:
        assert (await gateway.ask(path.replace("NAME", "smollm2"), verb="PUT")).status == 405
    without = await serve(ollama, apis=["openai"])
    assert missing
    for path in missing:
        assert (await without.ask(path, {})).status == 501


async def test_call_in_the_readme(serve: Serve, ollama: OllamaServer) -> None:
    """The JSON-RPC call that is shown is answered."""
    gateway = await serve(ollama)
    (body,) = re.findall(r"/rpc -d '(.*)'", README)
    assert (await gateway.ask("/rpc", body)).json["result"]["models"]
