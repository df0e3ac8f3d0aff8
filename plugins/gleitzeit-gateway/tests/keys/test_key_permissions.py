"""The models and methods that a key may use, over real connections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anthropic
import ollama as ollama_client
import openai
import pytest
from pydantic import ValidationError

from gleitzeit_gateway.options import GatewayOptions
from gleitzeit_ollama.testing import (
    OllamaServer,
)

from .alice import AS_ALICE, AS_ROOT, CHAT, KEY, MESSAGES, alice, ask, rpc

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from gleitzeit_gateway.testing import RunningGateway

    Serve = Callable[..., Awaitable[RunningGateway]]

RESTRICTED = '''
"""A provider with a restricted method; loaded as a single-file plugin."""

from gleitzeit_core.hookspecs import ProviderType, hookimpl
from gleitzeit_core.provider import Provider
from gleitzeit_core.requests import Method
from gleitzeit_core.strategies.base import NoOptions


class Shell(Provider[NoOptions]):
    protocol = "shell"
    methods = (
        Method(name="shell/run", summary="anything", replayable=False, local=True, restricted=True),
        Method(name="shell/info", summary="about it", replayable=True, local=True),
    )
    accepts = ()

    async def execute_on(self, instance, api, channel, request):
        return None

    async def answer(self, request, instances):
        return request.method


@hookimpl
def gleitzeit_register_providers():
    options = "gleitzeit_core.strategies.base:NoOptions"
    return [ProviderType(name="shell", target=f"{__name__}:Shell", options=options, summary="a shell")]
'''


# -- models --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def many() -> Any:  # noqa: ANN401 - a server
    """A server with several models."""
    async with OllamaServer(models=["llama3.2", "llama3.2:70b", "qwen3", "smollm2"]) as server:
        yield server


async def test_lists_show_what_may_be_used(serve: Serve, many: OllamaServer) -> None:
    """Every list of models has only those; a key without the option sees all."""
    gateway = await serve(many, keys=alice(models=["llama3*", "smollm2:latest"]))
    may = ["llama3.2:70b", "llama3.2:latest", "smollm2:latest"]
    for model in ("smollm2", "qwen3"):
        await gateway.ask("/api/chat", {"model": model, "messages": []}, headers=AS_ROOT)
    tags = (await gateway.ask("/api/tags", headers=AS_ALICE)).json["models"]
    assert sorted(model["name"] for model in tags) == may
    listed = (await gateway.ask("/v1/models", headers=AS_ALICE)).json["data"]
    assert sorted(model["id"] for model in listed) == may
    assert [model["name"] for model in (await gateway.ask("/api/ps", headers=AS_ALICE)).json["models"]] == may[2:]
    assert len((await gateway.ask("/api/ps", headers=AS_ROOT)).json["models"]) == 2
    assert len((await gateway.ask("/api/tags", headers=AS_ROOT)).json["models"]) == 4
    for method, count in (("llm/models", 3), ("llm/loaded", 1)):
        assert len((await rpc(gateway, method)).json["result"]["models"]) == count
        assert len((await rpc(gateway, method, batch=True)).json[0]["result"]["models"]) == count
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as client:
        assert (await client.models.retrieve("llama3.2")).id == "llama3.2"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("qwen3")


async def test_a_model_that_is_not_allowed(serve: Serve, many: OllamaServer) -> None:
    """Is refused in each API's own words, whether there is one of that name or not; no server hears of it."""
    gateway = await serve(many, keys=alice(models=["llama3.2"]))
    said = "this key may not use model 'qwen3'"
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as v1:
        with pytest.raises(openai.PermissionDeniedError, match=said) as caught:
            await v1.chat.completions.create(model="qwen3", messages=MESSAGES)
        assert caught.value.code == "model_not_found"
    async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key=KEY, max_retries=0) as client:
        with pytest.raises(anthropic.PermissionDeniedError, match=said) as denied:
            await client.messages.create(model="qwen3", max_tokens=64, messages=MESSAGES)
        assert denied.value.body["error"]["type"] == "permission_error"  # type: ignore[index]
    async with ollama_client.AsyncClient(host=gateway.url, headers=AS_ALICE) as native:
        with pytest.raises(ollama_client.ResponseError, match=said) as error:
            await native.chat("qwen3", MESSAGES)
        assert error.value.status_code == 403
        with pytest.raises(ollama_client.ResponseError, match=r"may not use model 'llama3\.2:70b'"):
            await native.embed("llama3.2:70b", "hi")
        with pytest.raises(ollama_client.ResponseError, match="may not use"):
            await native.show("no-such-model")
        assert (await native.chat("llama3.2:latest", MESSAGES)).message.content
    refused = await ask(
        gateway, "/rpc", {"jsonrpc": "2.0", "id": 1, "method": "llm/chat", "params": {"model": "qwen3"}}
    )
    assert refused.json["error"]["data"]["code"] == "model_not_allowed"
    asked = [record for record in many.requests if record.method == "POST"]
    assert [b"llama3.2:latest" in record.body for record in asked] == [True]


@pytest.mark.parametrize("name", ["MODEL", "Model", "NAME"])
async def test_a_model_that_is_smuggled_in(serve: Serve, many: OllamaServer, name: str) -> None:
    """A real Ollama takes these for the model as well: a body that has one is refused."""
    gateway = await serve(many, keys=alice(models=["llama3.2"]))
    answered = await ask(gateway, "/api/chat", {"model": "llama3.2", name: "qwen3", "messages": MESSAGES})
    assert (answered.status, answered.json["error"]) == (400, f"'{name}' must be written '{name.lower()}'")
    params = {"model": "llama3.2", name: "qwen3", "messages": MESSAGES}
    answered = await ask(gateway, "/rpc", {"jsonrpc": "2.0", "id": 1, "method": "llm/chat", "params": params})
    assert answered.json["error"]["data"]["param"] == name
    everybody = await gateway.ask("/api/chat", {"model": "llama3.2", name: "x", "stream": False}, headers=AS_ROOT)
    assert everybody.status == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/pull", {"model": "qwen3"}),
        ("/api/push", {"model": "qwen3"}),
        ("/api/create", {"model": "mine", "from": "llama3.2"}),
        ("/api/create", {"model": "llama3.2", "from": "qwen3"}),
        ("/api/copy", {"source": "llama3.2", "destination": "mine"}),
        ("/api/copy", {"source": "qwen3", "destination": "llama3.2"}),
        ("/api/delete", {"model": "qwen3"}),
        ("/api/delete", {"name": "qwen3"}),
        ("/admin/models/load", {"model": "qwen3"}),
        ("/admin/models/unload", {"model": "qwen3"}),
    ],
)
async def test_models_are_managed_where_they_may_be_used(
    serve: Serve, many: OllamaServer, path: str, body: dict[str, str]
) -> None:
    """An admin key with `models` manages only those; no server hears of others."""
    gateway = await serve(many, keys=alice(models=["llama3.2"], admin=True))
    answered = await ask(gateway, path, body, verb="DELETE" if path == "/api/delete" else "POST")
    assert answered.status == 403
    assert "this key may not use model" in answered.text
    assert not [record for record in many.requests if record.path == path]


async def test_an_alias_counts_as_its_model(serve: Serve, many: OllamaServer) -> None:
    """It is listed and may be used where its model is."""
    gateway = await serve(many, keys=alice(models=["llama3.2"]), llm={"aliases": {"best": "llama3.2", "gpt": "qwen3"}})
    tags = (await gateway.ask("/api/tags", headers=AS_ALICE)).json["models"]
    assert [model["name"].removesuffix(":latest") for model in tags] == ["best", "llama3.2"]
    assert (await ask(gateway, body={**CHAT, "model": "best", "stream": False})).status == 200
    assert (await ask(gateway, body={**CHAT, "model": "gpt"})).status == 403


# -- methods -------------------------------------------------------------------------------------------------------


async def methods_of(gateway: RunningGateway, headers: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """The methods that there are."""
    found: list[dict[str, Any]] = (await gateway.ask("/rpc/methods", headers=headers)).json["methods"]
    return found


async def test_restricted_methods(serve: Serve, ollama: OllamaServer, tmp_path: Path) -> None:
    """They are not called unless the gateway's configuration names them; the error says how."""
    (tmp_path / "shell.py").write_text(RESTRICTED)
    gateway = await serve(ollama, files=[tmp_path / "shell.py"])
    call = {"jsonrpc": "2.0", "id": 1, "method": "shell/run"}
    refused = (await gateway.ask("/rpc", call)).json["error"]
    assert refused["data"]["code"] == "method_not_allowed"
    said = "shell/run is restricted: to have it called through this gateway, name it in the option 'gateway.methods'"
    assert refused["message"] == said
    assert (await gateway.ask("/rpc", [call])).json[0]["error"]["message"] == said
    assert (await gateway.ask("/rpc", {**call, "method": "shell/info"})).json["result"] == "shell/info"
    listed = {one["name"]: (one["restricted"], one["allowed"]) for one in await methods_of(gateway)}
    assert (listed["shell/info"], listed["shell/run"]) == ((False, True), (True, False))
    named = await serve(ollama, files=[tmp_path / "shell.py"], methods=["shell/*"])
    assert (await named.ask("/rpc", call)).json["result"] == "shell/run"
    listed = {one["name"]: (one["restricted"], one["allowed"]) for one in await methods_of(named)}
    assert listed["shell/run"] == (True, True)


async def test_methods_of_a_key(serve: Serve, ollama: OllamaServer, tmp_path: Path) -> None:
    """What they name, restricted or not, is all it may call, lists of models and client APIs included."""
    (tmp_path / "shell.py").write_text(RESTRICTED)
    gateway = await serve(ollama, files=[tmp_path / "shell.py"], keys=alice(methods=["shell/run", "llm/embed"]))
    assert (await rpc(gateway, "shell/run")).json["result"] == "shell/run"
    for method in ("llm/chat", "llm/models", "shell/info"):
        refused = (await rpc(gateway, method)).json["error"]
        said = f"this key may not call {method}: the option 'methods' of the key does not name it"
        assert (refused["message"], refused["data"]["code"]) == (said, "method_not_allowed")
    for path in ("/api/chat", "/v1/chat/completions", "/v1/messages"):
        assert (await ask(gateway, path, {**CHAT, "max_tokens": 9})).status == 403
    for path in ("/api/tags", "/api/ps", "/v1/models", "/v1/models/smollm2"):
        assert (await gateway.ask(path, headers=AS_ALICE)).status == 403
    assert (await ask(gateway, "/api/embed", {"model": "smollm2", "input": "hi"})).status == 200
    allowed = [one["name"] for one in await methods_of(gateway, AS_ALICE) if one["allowed"]]
    assert sorted(allowed) == ["llm/embed", "shell/run"]
    as_root = await gateway.ask("/rpc", {"jsonrpc": "2.0", "id": 1, "method": "shell/run"}, headers=AS_ROOT)
    assert "name it in the option 'gateway.methods', or 'methods' of a key" in as_root.json["error"]["message"]


@pytest.mark.parametrize(
    "options", [{"methods": ["python"]}, {"keys": [{"name": "a", "key": KEY, "methods": ["llm"]}]}]
)
def test_patterns_that_match_nothing(options: dict[str, Any]) -> None:
    """A protocol alone is no pattern of methods, and the error says what is."""
    with pytest.raises(ValidationError, match=r"matches no method: write '(python|llm)/\*'"):
        GatewayOptions.model_validate(options)
