"""Aliases and fallbacks: what may be configured, and what a request then does."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from gleitzeit_core.errors import FailureKind, InstanceFailure, NoCapableInstance, RequestError, Unavailable
from gleitzeit_core.pool import State
from gleitzeit_llm.names import Names
from gleitzeit_llm.options import LLMOptions
from gleitzeit_llm.provider import LLMProvider

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    StartPool = Callable[..., Awaitable[Any]]
    MakeInstance = Callable[..., Any]

testing = pytest.importorskip("gleitzeit_ollama.testing")

pytestmark = pytest.mark.fidelity

HI = [{"role": "user", "content": "hi"}]
both_apis = pytest.mark.parametrize("api", ["ollama", "openai"])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"aliases": {"a": "b", "b": "c"}}, "aliases.a: 'b' is an alias too: name the model itself, 'c'"),
        ({"aliases": {"a": "a"}}, "a -> a never ends"),
        ({"aliases": {"a": "b", "b": "c", "c": "a"}}, "a -> b -> c -> a never ends"),
        ({"aliases": {"x": "a", "a": "b", "b": "a"}}, "x -> a -> b -> a never ends"),
        ({"aliases": {"a": "b:latest", "b": "c"}}, "'b:latest' is an alias too"),
        ({"aliases": {"a": "m", "a:latest": "m"}}, "'a' and 'a:latest' are one name"),
        ({"aliases": {"a": ""}}, "at least 1 character"),
        ({"fallbacks": {"a": []}}, "fallbacks.a: name at least one model"),
        ({"fallbacks": {"a": ["a:latest"]}}, "stands there twice, or for itself"),
        ({"fallbacks": {"a": ["b", "b"]}}, "stands there twice"),
        ({"fallbacks": {"a": ["b"], "a:latest": ["c"]}}, "are one name"),
        ({"fallbacks": {"gpt": ["b"]}, "aliases": {"gpt": "m"}}, "'gpt' is an alias: name the model itself, 'm'"),
        ({"fallbacks": {"m": ["gpt"]}, "aliases": {"gpt": "m"}}, "'gpt' is an alias"),
    ],
)
def test_names_that_make_no_sense(options: dict[str, Any], why: str) -> None:
    """They are told at start, with the name that is wrong."""
    with pytest.raises(ValidationError) as caught:
        LLMOptions.model_validate(options)
    assert why in str(caught.value)


def test_two_models_may_stand_in_for_each_other() -> None:
    """Only the list of the model that was asked for counts, so that nothing goes round in circles."""
    names = Names.of(LLMOptions(fallbacks={"a": ["b"], "b": ["a"]}))
    assert names is not None
    assert names.served("llm/chat", "a", lambda _: False) == "a"
    assert names.served("llm/chat", "b", lambda model: model == "a") == "a"
    assert repr(names) == "<Names 0 aliases, 2 fallbacks>"


def test_nothing_configured_is_nothing_to_do() -> None:
    """Without aliases and fallbacks requests are not looked at."""
    assert Names.of(LLMOptions()) is None
    assert not LLMProvider().renames
    assert LLMProvider(LLMOptions(aliases={"a": "b"})).renames


@pytest.fixture
async def server() -> AsyncIterator[Any]:
    """A stand-in with two models."""
    async with testing.OllamaServer(models=["big", "small"]) as started:
        yield started


@pytest.fixture
def renaming(pool: StartPool, server: Any, instance_at: MakeInstance) -> Callable[..., Awaitable[Any]]:  # noqa: ANN401 - a stand-in
    """Starts a pool with one instance that has `have`, by a provider with these options."""

    async def start(
        *apis: str,
        have: tuple[str, ...] = ("big", "small"),
        more: tuple[Any, ...] = (),
        max_concurrent: int = 4,
        **options: Any,  # noqa: ANN401 - of the provider
    ) -> Any:  # noqa: ANN401 - a pool
        made = await pool(instance_at(server.url, *apis, models_=have, max_concurrent=max_concurrent), *more)
        made.provider = provider = LLMProvider(LLMOptions(**options))
        await provider.open()
        provider.bind(made.dispatcher)
        return made

    return start


Renaming = Any


@both_apis
@pytest.mark.parametrize("stream", [False, True])
async def test_an_alias_in_bytes(renaming: Renaming, server: Any, api: str, stream: bool) -> None:  # noqa: ANN401, FBT001
    """The server gets its own name for the model and every other byte, unknown fields among them."""
    started = await renaming(api, aliases={"gpt-4o": "big"})
    body = {"model": "gpt-4o", "messages": HI, "stream": stream, "colour": {"a": [1.50]}}
    path = {"ollama": "/api/chat", "openai": "/v1/chat/completions"}[api]
    answer = await started.raw(api, path, body)
    assert json.loads(server.requests[-1].body) == {**body, "model": "big"}
    assert b'"colour":{"a":[1.5]}' in server.requests[-1].body.replace(b" ", b"")
    whole = b"".join(answer) if stream else answer.body
    assert b"gpt-4o" not in whole
    assert b'"model":"big"' in whole.replace(b" ", b"")
    await started.provider.close()


@both_apis
async def test_an_alias_in_every_method(renaming: Renaming, api: str) -> None:
    """The library and translated bytes know it too: chat, generate, embed, show."""
    started = await renaming(api, aliases={"gpt-4o:latest": "big"})
    provider, other = started.provider, {"ollama": "openai", "openai": "ollama"}[api]
    for method, more in (("chat", {"messages": HI}), ("generate", {"prompt": "hi"}), ("embed", {"input": "hi"})):
        assert (await provider.execute(f"llm/{method}", {"model": "gpt-4o", **more}))["model"] == "big"
    parts = provider.stream("llm/chat", {"model": "gpt-4o", "messages": HI})
    assert {part["model"] async for part in parts} == {"big"}
    assert "details" in await provider.execute("llm/show", {"model": "gpt-4o"})
    path = {"ollama": "/api/chat", "openai": "/v1/chat/completions"}[other]
    answer = await started.raw(other, path, {"model": "gpt-4o", "messages": HI, "stream": False})
    assert json.loads(answer.body)["model"] == "big"
    await provider.close()


async def test_aliases_are_listed(renaming: Renaming) -> None:
    """An alias is in the list of models with its target, unless nobody has that."""
    started = await renaming(aliases={"gpt-4o": "big:latest", "gpt-5": "huge"})
    listed = (await started.provider.execute("llm/models"))["models"]
    assert [entry["name"] for entry in listed] == ["big", "gpt-4o", "small"]
    assert (listed[1]["model"], listed[1]["alias_of"], listed[1]["details"]["parent_model"]) == ("gpt-4o", "big", "big")
    assert "alias_of" not in listed[0]
    await started.provider.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_fallback_serves_where_nobody_has_the_model(renaming: Renaming, stream: bool) -> None:  # noqa: FBT001
    """The first of the list that is there serves, in bytes and in the library, and the answer says so."""
    started = await renaming(have=("small",), aliases={"gpt": "big"}, fallbacks={"big": ["huge", "small"]})
    for name in ("big", "gpt"):
        answer = await started.raw("ollama", "/api/chat", {"model": name, "messages": HI, "stream": stream})
        first = answer[0].splitlines()[0] if stream else answer.body
        assert json.loads(first)["model"].startswith("small")
        said = await started.provider.execute("llm/generate", {"model": name, "prompt": "hi"})
        assert said["model"] == "small"
    await started.provider.close()


async def test_a_fallback_serves_only_then(renaming: Renaming) -> None:
    """Not for vectors, which would mean something else; not for what has none; not while the model is there."""
    started = await renaming(have=("small",), fallbacks={"big": ["small"]})
    for method, more in (("embed", {"input": "hi"}), ("show", {})):
        with pytest.raises(NoCapableInstance, match="model:big"):
            await started.provider.execute(f"llm/{method}", {"model": "big", **more})
    with pytest.raises(NoCapableInstance, match="model:huge"):
        await started.provider.execute("llm/chat", {"model": "huge", "messages": HI})
    with pytest.raises(NoCapableInstance, match="model:big"):
        await started.provider.execute("llm/chat", {"model": "big", "messages": HI}, tags=("gpu",))
    await started.provider.close()


async def test_a_busy_instance_is_waited_for(renaming: Renaming, server: Any) -> None:  # noqa: ANN401 - a stand-in
    """An instance that is up and has the model serves it, however much it has to do."""
    started = await renaming(fallbacks={"big": ["small"]}, max_concurrent=1)
    server.gate = gate = testing.Gate(tokens=1)
    params = {"model": "big", "messages": HI}
    async with started.provider.stream("llm/chat", params) as first:
        await anext(first)
        second = asyncio.create_task(started.provider.execute("llm/chat", params))
        while not started.dispatcher.shell.admission.waiting:
            await asyncio.sleep(0)
        gate.open()
        assert [part["model"] async for part in first][-1] == "big"
    assert (await second)["model"] == "big"
    await started.provider.close()


async def test_an_instance_that_is_down_is_not_waited_for(renaming: Renaming, instance_at: MakeInstance) -> None:
    """Where those that have the model are down, the fallback serves; and where there is none the error names them."""
    gone = instance_at("http://127.0.0.1:9", models_=["big"])
    started = await renaming(have=("small",), more=(gone,), fallbacks={"big": ["small"]})
    assert started.provider.request("llm/chat", {"model": "big", "messages": HI}).params["model"] == "big"
    started.dispatcher.shell.set_state(gone.id, State.DOWN, "gone")
    assert (await started.provider.execute("llm/chat", {"model": "big", "messages": HI}))["model"] == "small"
    with pytest.raises(Unavailable, match="model:big"):
        await started.provider.execute("llm/embed", {"model": "big", "input": "hi"})
    await started.provider.close()


async def test_the_request_that_finds_the_last_one_gone(
    renaming: Renaming, instance_at: MakeInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is served by the fallback; and where there is none its own failure is told."""
    gone = instance_at("http://127.0.0.1:9", models_=["big", "other"])
    started = await renaming(have=("small",), more=(gone,), fallbacks={"big": ["small"]})

    async def refused(instance: Any) -> Any:  # noqa: ANN401 - an instance
        raise InstanceFailure(FailureKind.REFUSED, f"{instance.endpoint} is gone", started=False)

    monkeypatch.setattr(started.hub, "check", refused)
    assert (await started.provider.execute("llm/chat", {"model": "big", "messages": HI}))["model"] == "small"
    with pytest.raises(RequestError, match=r"127\.0\.0\.1:9"):
        await started.provider.execute("llm/chat", {"model": "other", "messages": HI})
    await started.provider.close()
