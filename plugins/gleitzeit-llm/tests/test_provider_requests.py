"""Requests before they reach an instance: what is read from them, and what is refused."""

from __future__ import annotations

import asyncio
import json
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import InvalidRequest, NoCapableInstance, RequestError, UnknownMethod, UnknownName
from gleitzeit_core.resources import ChannelKind, Requirements, Speaks
from gleitzeit_llm.models import MAX_NAME_CHARACTERS
from gleitzeit_llm.options import LLMOptions
from gleitzeit_llm.provider import LLMProvider
from gleitzeit_llm.raw import needs_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    StartPool = Callable[..., Awaitable[Any]]
    MakeInstance = Callable[..., Any]

OLLAMA, OPENAI = Speaks("ollama", ChannelKind.HTTP), Speaks("openai", ChannelKind.HTTP)
ENDPOINTS = {
    ("ollama", "/api/chat"): ("llm/chat", True),
    ("ollama", "/api/generate"): ("llm/generate", True),
    ("ollama", "/api/embed"): ("llm/embed", False),
    ("ollama", "/api/embeddings"): ("llm/embed", False),
    ("ollama", "/api/show"): ("llm/show", False),
    ("openai", "/v1/chat/completions"): ("llm/chat", False),
    ("openai", "/v1/completions"): ("llm/generate", False),
    ("openai", "/v1/embeddings"): ("llm/embed", False),
    ("anthropic", "/v1/messages"): ("llm/chat", False),
    ("anthropic", "/v1/messages/count_tokens"): ("llm/count_tokens", False),
}


@pytest.fixture
def provider() -> LLMProvider:
    """One that is not open: nothing here needs it to be."""
    return LLMProvider()


@pytest.mark.parametrize(("dialect", "path"), ENDPOINTS)
def test_each_endpoint_is_a_method(provider: LLMProvider, dialect: str, path: str) -> None:
    """The path says what is asked for, and whether it is answered in parts when the body does not say."""
    body = b'{"model": "m:latest", "messages": 5}'
    request = provider.raw_request(dialect, path, body)
    assert (request.method, request.stream) == ENDPOINTS[dialect, path]
    assert (request.body, request.dialect, request.endpoint) == (body, dialect, path)
    assert request.params == {"model": "m:latest"}


@pytest.mark.parametrize("in_bytes", [True, False])
def test_names_as_long_as_a_body_are_refused(provider: LLMProvider, *, in_bytes: bool) -> None:
    """What is asked for is remembered here and there, by its name: callers must not fill the memory with it."""
    for name in ("m" * MAX_NAME_CHARACTERS, "m" * (MAX_NAME_CHARACTERS + 1)):
        body = json.dumps({"model": name}).encode()
        longer = len(name) > MAX_NAME_CHARACTERS
        with pytest.raises(InvalidRequest, match="1024 characters") if longer else nullcontext():
            if in_bytes:
                provider.raw_request("ollama", "/api/chat", body)
            else:
                provider.request("llm/chat", {"model": name, "messages": []})


def test_of_names_as_long_as_a_body_nothing_is_kept(provider: LLMProvider) -> None:
    """Neither of them nor of what they would need; what others need is worked out once."""
    needs_of.cache_clear()
    for name, kept in (("m" * MAX_NAME_CHARACTERS, 1), ("m" * (MAX_NAME_CHARACTERS + 1), 1), ("m", 2)):
        with suppress(InvalidRequest):
            provider.raw_request("openai", "/v1/embeddings", json.dumps({"model": name}).encode())
        assert needs_of.cache_info().currsize == kept


@pytest.mark.parametrize(("dialect", "path"), ENDPOINTS)
@pytest.mark.parametrize("stream", [True, False])
def test_the_body_says_whether_it_streams(provider: LLMProvider, dialect: str, path: str, stream: bool) -> None:  # noqa: FBT001 - the field's own value
    """`stream` is followed where the method can answer in parts, and ignored elsewhere, as in Ollama."""
    body = json.dumps({"model": "m", "stream": stream}).encode()
    request = provider.raw_request(dialect, path, body)
    assert request.stream is (stream and request.method in ("llm/chat", "llm/generate"))


@pytest.mark.parametrize(
    ("dialect", "order"),
    [("ollama", (OLLAMA, OPENAI)), ("openai", (OPENAI, OLLAMA)), ("anthropic", (OLLAMA, OPENAI))],
)
def test_the_callers_own_api_comes_first(provider: LLMProvider, dialect: str, order: tuple[Speaks, ...]) -> None:
    """Where an instance speaks both, the bytes pass; what no instance speaks goes to the richer of the two."""
    path = {"ollama": "/api/chat", "openai": "/v1/chat/completions", "anthropic": "/v1/messages"}[dialect]
    assert provider.raw_request(dialect, path, b'{"model":"m"}').requirements.accepts == order


def test_options_of_a_request_are_kept(provider: LLMProvider) -> None:
    """What the caller says besides the body narrows and orders as for any request."""
    request = provider.raw_request(
        "ollama", "/api/chat", b'{"model":"m"}', tenant="t", priority=2, tags=["gpu"], instances=["a"], timeout_s=5
    )
    assert (request.tenant, request.priority) == ("t", 2)
    assert request.deadline is not None
    assert request.requirements == Requirements(
        accepts=(OLLAMA, OPENAI),
        capabilities=frozenset({"model:m"}),
        tags=frozenset({"gpu"}),
        instances=frozenset({"a"}),
    )


@pytest.mark.parametrize("name", ["m", "m:latest"])
def test_a_name_with_and_without_latest_is_one(provider: LLMProvider, name: str) -> None:
    """Both ask for the same capability."""
    request = provider.raw_request("ollama", "/api/chat", json.dumps({"model": name}).encode())
    assert request.requirements.capabilities == {"model:m"}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "missing request body"),
        (b"{}", "model is required"),
        (b'{"model": ""}', "model is required"),
        (b'{"model": null}', "model is required"),
        (b'{"model": 5}', "json: cannot unmarshal number into Go struct field ChatRequest.model of type string"),
        (b'{"model": "m", "stream": "yes"}', "json: cannot unmarshal string into Go struct field ChatRequest.stream"),
        (b"{not JSON", "invalid character 'n' looking for beginning of object key string"),
        (b"[1]", "json: cannot unmarshal array into Go value of type api.ChatRequest"),
        (b"\xff\xfe", "invalid character"),
        (b'{"x":' + b"[" * 100_000, "exceeded max depth"),
    ],
)
def test_a_body_without_a_model_is_the_callers_fault(provider: LLMProvider, body: bytes, text: str) -> None:
    """It is refused before it takes a slot, in Ollama's words."""
    with pytest.raises(InvalidRequest) as caught:
        provider.raw_request("ollama", "/api/chat", body)
    assert caught.value.message.startswith(text)


def test_an_older_client_may_say_name(provider: LLMProvider) -> None:
    """`/api/show` took `name` before it took `model`, and still does."""
    request = provider.raw_request("ollama", "/api/show", b'{"name": "m:1b"}')
    assert request.params == {"model": "m:1b"}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"{}", "model is required"),
        (b'{"name": ""}', "model is required"),
        (b'{"name": 5}', "model is required"),
        (b'{"model": 5, "name": "m"}', "json: cannot unmarshal number into Go struct field ShowRequest.model"),
        (b"{", "unexpected EOF"),
    ],
)
def test_a_show_without_a_model(provider: LLMProvider, body: bytes, text: str) -> None:
    """It is refused as elsewhere."""
    with pytest.raises(InvalidRequest) as caught:
        provider.raw_request("ollama", "/api/show", body)
    assert caught.value.message.startswith(text)


@pytest.mark.parametrize("dialect", ["ollama", "openai"])
def test_name_is_nothing_elsewhere(provider: LLMProvider, dialect: str) -> None:
    """Only `/api/show` knows it."""
    path = {"ollama": "/api/chat", "openai": "/v1/chat/completions"}[dialect]
    with pytest.raises(InvalidRequest, match="model is required"):
        provider.raw_request(dialect, path, b'{"name": "m"}')


def test_unknown_endpoints_and_dialects_are_named(provider: LLMProvider) -> None:
    """A gateway that asks for what is not there is told what is."""
    with pytest.raises(UnknownName, match=r"unknown endpoint '/api/chats'.*did you mean '/api/chat'"):
        provider.raw_request("ollama", "/api/chats", b'{"model":"m"}')
    with pytest.raises(UnknownName, match="unknown endpoint '/api/show'"):
        provider.raw_request("openai", "/api/show", b'{"model":"m"}')
    with pytest.raises(UnknownName, match="unknown dialect 'gemini'"):
        provider.raw_request("gemini", "/v1/messages", b'{"model":"m"}')


@pytest.mark.parametrize("method", ["llm/chat", "llm/generate", "llm/embed", "llm/show", "llm/count_tokens"])
@pytest.mark.parametrize(
    ("model", "text"),
    [
        (None, "model is required"),
        ("", "model is required"),
        (5, "'model' must be a string"),
        (["m"], "'model' must be a string"),
    ],
)
def test_parameters_need_a_model(provider: LLMProvider, method: str, model: object, text: str) -> None:
    """Without one, or with one that is no string, the request is the caller's fault, and says which field it is."""
    with pytest.raises(InvalidRequest, match=text) as caught:
        provider.request(method, {"model": model})
    assert caught.value.param == "model"


@pytest.mark.parametrize("method", ["llm/models", "llm/loaded"])
def test_listings_need_no_model(provider: LLMProvider, method: str) -> None:
    """They go over all instances that speak one of the apis."""
    assert provider.request(method).requirements == Requirements(accepts=(OLLAMA, OPENAI))


def test_unknown_methods_are_named(provider: LLMProvider) -> None:
    """With the nearest that there is."""
    with pytest.raises(UnknownMethod, match="did you mean 'llm/chat'"):
        provider.request("llm/chats", {"model": "m"})


async def test_only_text_streams(pool: StartPool) -> None:
    """Embeddings and listings have no parts."""
    started = await pool()
    for method in ("llm/embed", "llm/models", "llm/show", "llm/loaded", "llm/count_tokens"):
        request = started.provider.request(method, {"model": "m"})
        with pytest.raises(RequestError, match="in parts"):
            started.dispatcher.stream(started.provider, request)


async def test_a_model_that_nobody_has(pool: StartPool, instance_at: MakeInstance) -> None:
    """It is said what there is."""
    started = await pool(instance_at("http://127.0.0.1:1", models_=["llama3"]))
    with pytest.raises(NoCapableInstance, match="model:llama3"):
        await started.raw("ollama", "/api/chat", {"model": "nope"})


async def test_it_is_opened_and_closed_with_its_hub(pool: StartPool, instance_at: MakeInstance) -> None:
    """Used alone, it opens its client and its hub, and closes both."""
    hub = type((await pool()).hub)([instance_at("http://127.0.0.1:1")])
    before = asyncio.all_tasks()
    async with LLMProvider(LLMOptions(connect_timeout_s=1), hub=hub) as provider:
        assert [entry["name"] for entry in (await provider.execute("llm/models"))["models"]] == ["smollm2"]
    assert hub.instances == ()
    assert asyncio.all_tasks() == before
