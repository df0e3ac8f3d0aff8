"""The list of methods: what can be called, and with which parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from gleitzeit_gateway.testing import RunningGateway
    from gleitzeit_ollama.testing import OllamaServer

    Serve = Callable[..., Awaitable[RunningGateway]]

PROVIDER = '''
"""A provider whose parameters have models; loaded as a single-file plugin."""

from typing import Any

from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema
from gleitzeit_core.hookspecs import ProviderType, hookimpl
from gleitzeit_core.provider import Provider
from gleitzeit_core.requests import Method
from gleitzeit_core.strategies.base import NoOptions


class Add(BaseModel):
    """Two numbers."""

    left: int = Field(ge=0, description="The first.")
    right: int = 1


class Odd:
    pass


class Strange(BaseModel, arbitrary_types_allowed=True):
    it: Odd


class Sums(Provider[NoOptions]):
    protocol = "sums"
    methods = (
        Method(name="sums/add", summary="a sum", replayable=True, params=Add),
        Method(name="sums/strange", summary="no schema", replayable=False, params=Strange),
    )
    accepts = ()

    async def execute_on(self, instance, api, channel, request):
        return None


@hookimpl
def gleitzeit_register_providers():
    return [
        ProviderType(
            name="sums",
            target=f"{__name__}:Sums",
            options="gleitzeit_core.strategies.base:NoOptions",
            summary="sums",
        )
    ]
'''


async def test_methods(serve: Serve, ollama: OllamaServer, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each method is listed with what it does and the schema of its parameters, where it has one."""
    (tmp_path / "sums.py").write_text(PROVIDER)
    gateway = await serve(ollama, files=[tmp_path / "sums.py"])
    answered = await gateway.ask("/rpc/methods")
    assert answered.status == 200
    found = {one["name"]: one for one in answered.json["methods"]}
    status = (await gateway.ask("/admin/status")).json
    assert found.keys() == {one["name"] for one in status["methods"]}
    chat = found["llm/chat"]
    assert (chat["streams"], chat["replayable"], chat["params"]["type"]) == (True, True, "object")
    assert chat["params"]["required"] == ["model"]
    assert {"model", "messages", "tools", "options"} <= chat["params"]["properties"].keys()
    assert chat["summary"] == "the next message of a conversation"
    added = found["sums/add"]["params"]
    assert added["properties"]["left"] == {
        "description": "The first.",
        "minimum": 0,
        "title": "Left",
        "type": "integer",
    }
    assert added["required"] == ["left"]
    assert found["sums/strange"]["params"] == {"type": "object"}
    assert "no JSON schema" in caplog.text


async def test_methods_need_a_key(serve: Serve, ollama: OllamaServer) -> None:
    """Where keys are configured, the list needs one too."""
    gateway = await serve(ollama, keys=[{"name": "alice", "key": "alices-key-is-very-secret"}])
    assert (await gateway.ask("/rpc/methods")).status == 401


@pytest.mark.parametrize("verb", ["POST", "DELETE"])
async def test_methods_are_only_read(serve: Serve, ollama: OllamaServer, verb: str) -> None:
    """Nothing else can be done with it."""
    gateway = await serve(ollama)
    assert (await gateway.ask("/rpc/methods", verb=verb)).status == 405
