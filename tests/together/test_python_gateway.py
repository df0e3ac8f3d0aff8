"""Python through the gateway: only where its configuration turns it on, for each key its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.manager import ResourceManager
from gleitzeit_gateway.testing import RunningGateway

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

KEYS = [
    {"key": "key-of-anna-0123456789", "name": "anna"},
    {"key": "key-of-bert-0123456789", "name": "bert"},
    {"key": "key-of-chat-0123456789", "name": "chat", "methods": ["llm/*"]},
]


async def serving(**gateway: object) -> AsyncIterator[RunningGateway]:
    """A gateway over child processes."""
    overrides = {
        "hubs": {"mine": {"type": "process", "max_total": 2}},
        "gateway": {"port": 0, "keys": KEYS, **gateway},
    }
    async with RunningGateway(ResourceManager.from_config(overrides=overrides)) as running:
        yield running


async def call(gateway: RunningGateway, name: str, params: dict[str, Any], **more: Any) -> Any:  # noqa: ANN401 - JSON
    """``python/execute`` by JSON-RPC, with the key of `name`."""
    body = {"jsonrpc": "2.0", "id": 1, "method": "python/execute", "params": params, **more}
    headers = {"Authorization": f"Bearer key-of-{name}-0123456789"}
    async with gateway.session.post(f"{gateway.url}/rpc", json=body, headers=headers) as answer:
        return [await answer.json()] if "stream" not in more else (await answer.text()).splitlines()


@pytest.mark.parametrize("name", ["anna", "chat"])
async def test_off_unless_turned_on(name: str) -> None:
    """Nobody can have code run through a gateway whose configuration says nothing of it."""
    async for gateway in serving():
        (answer,) = await call(gateway, name, {"code": "1"})
        assert "python/execute" in answer["error"]["message"]
        assert not gateway.manager.instances()


async def test_for_the_keys_that_may() -> None:
    """Turned on, it is there for those whose key is not for other methods only."""
    async for gateway in serving(methods=["python/*"]):
        (answer,) = await call(gateway, "anna", {"code": "print(6*7)"})
        assert answer["result"]["stdout"] == "42\n"
        (answer,) = await call(gateway, "chat", {"code": "1"})
        assert "python/execute" in answer["error"]["message"]


async def test_sessions_belong_to_their_key() -> None:
    """What one key has left in a session, another does not find under the same name; nor do they share a process."""
    async for gateway in serving(methods=["python/*"]):
        await call(gateway, "anna", {"code": "x = 'hers'", "session": "s"})
        (other,) = await call(gateway, "bert", {"code": "'x' in globals()", "session": "s"})
        (same,) = await call(gateway, "anna", {"code": "x", "session": "s"})
        assert (other["result"]["result"], same["result"]["result"]) == (False, "hers")
        assert other["result"]["instance"] != same["result"]["instance"]


async def test_in_parts() -> None:
    """Output comes as lines of JSON, then the whole answer."""
    async for gateway in serving(methods=["python/execute"]):
        lines = await call(gateway, "anna", {"code": "print('x')"}, stream=True)
        assert '"stdout": "x' in lines[0].replace('":"', '": "')
        assert "exit_status" in lines[-2]
        assert '"done"' in lines[-1]


async def test_wrong_parameters_are_the_callers_fault() -> None:
    """A clear error, and no process is started for it."""
    async for gateway in serving(methods=["python/*"]):
        (answer,) = await call(gateway, "anna", {"code": "1", "file": "x"})
        assert "either 'code' or 'file'" in answer["error"]["message"]
        assert not gateway.manager.instances()
