from __future__ import annotations

import asyncio
import sys

from gleitzeit_core.plugins import PluginHost
from gleitzeit_openai.hub import OpenAIHub
from gleitzeit_openai.options import OpenAIOptions


def test_it_is_never_used_unasked() -> None:
    """Found by its entry point; without a configuration nobody knows where its servers are."""
    host = PluginHost.load()
    kind = host.hub_type("openai")
    assert kind.auto_rank is None
    assert host.load_target(kind) is OpenAIHub
    assert host.load_options(kind) is OpenAIOptions


async def test_checking_a_configuration_loads_no_http_client() -> None:
    """That comes when the hub is made."""
    code = "import sys, gleitzeit_openai.plugin, gleitzeit_openai.options; print('aiohttp' in sys.modules)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert await process.communicate() == (b"False\n", None)
