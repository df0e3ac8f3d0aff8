"""`llm/count_tokens`: the tokenizer of a server says it, or nobody does."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import InvalidRequest, NoCapableInstance, Unavailable
from gleitzeit_llm import tokens

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Line = Any
    Serve = Callable[..., Awaitable[Any]]
    StartPool = Callable[..., Awaitable[Any]]
    MakeInstance = Callable[..., Any]

NOWHERE = "http://127.0.0.1:1"
HI = [{"role": "user", "content": "hi"}]
CHAT = {"model": "smollm2", "messages": HI}
BODY = {"model": "smollm2", "messages": HI, "system": "Be brief."}
TEMPLATED = {"/apply-template": {"prompt": "<hi>"}, "/tokenize": {"tokens": [5, 6, 7]}}
PATH = "/v1/messages/count_tokens"


def having(answers: dict[str, Any], *, status: str = "404 Not Found") -> Callable[[Line], Awaitable[None]]:
    """A server that has these paths, and answers `status` to all others."""

    async def handle(line: Line) -> None:
        while True:
            heard = await line.request()
            if heard.path in answers:
                line.answer(json.dumps(answers[heard.path]).encode())
            else:
                line.answer(b'{"error": {"message": "no such thing"}}', status=status)

    return handle


async def counted(pool: Any, **params: object) -> Any:  # noqa: ANN401 - a pool, and the answer
    """The answer to a library's question."""
    request = pool.provider.request("llm/count_tokens", {**CHAT, **params})
    return (await pool.dispatcher.one(pool.provider, request)).value


async def test_llama_cpp_counts(serve: Serve, pool: StartPool, instance_at: MakeInstance) -> None:
    """The conversation goes through the model's template, with its tools, and its text through the tokenizer."""
    server = await serve(having(TEMPLATED))
    started = await pool(instance_at(server.url, "openai", own={"smollm2": "own-name"}))
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    assert await counted(started, tools=[tool]) == {"model": "smollm2", "input_tokens": 3}
    template, text = server.heard
    assert (template.path, template.json) == (
        "/apply-template",
        {"model": "own-name", "messages": HI, "tools": [tool]},
    )
    assert (text.path, text.json) == ("/tokenize", {"content": "<hi>", "add_special": True, "parse_special": True})


async def test_vllm_counts(serve: Serve, pool: StartPool, instance_at: MakeInstance) -> None:
    """There one call does both, and says the number itself."""
    server = await serve(having({"/tokenize": {"count": 12, "max_model_len": 4096, "tokens": [1] * 12}}))
    started = await pool(instance_at(server.url, "openai"))
    assert (await counted(started))["input_tokens"] == 12
    assert server.heard[-1].json == {"model": "smollm2", "messages": HI}


async def test_in_the_bytes_of_anthropics_api(serve: Serve, pool: StartPool, instance_at: MakeInstance) -> None:
    """A caller of that API gets that API's answer, whole even when it says that it wants a stream."""
    server = await serve(having(TEMPLATED))
    started = await pool(instance_at(server.url, "openai"))
    answer = await started.raw("anthropic", PATH, BODY)
    assert (answer.status, answer.content_type, answer.body) == (200, "application/json", b'{"input_tokens":3}')
    assert server.heard[0].json["messages"] == [{"role": "system", "content": "Be brief."}, *HI]
    with pytest.raises(InvalidRequest, match="unknown field 'stream'"):
        await started.raw("anthropic", PATH, {**BODY, "stream": True})


async def test_those_that_cannot_are_passed_over(serve: Serve, pool: StartPool, instance_at: MakeInstance) -> None:
    """An Ollama is not asked at all; a server without a tokenizer, or one that is broken, is followed by the next."""
    ollama, plain = await serve(having(TEMPLATED)), await serve(having({}))
    broken, good = await serve(having({}, status="500 Oh")), await serve(having(TEMPLATED))
    instances = [
        instance_at(server.url, *apis, id=f"fixed-{number}")
        for number, (server, apis) in enumerate(
            [(ollama, ("ollama", "openai")), (plain, ("openai",)), (broken, ("openai",)), (good, ("openai",))]
        )
    ]
    assert (await counted(await pool(*instances)))["input_tokens"] == 3
    assert ollama.heard == []


async def test_it_takes_no_slot(serve: Serve, pool: StartPool, instance_at: MakeInstance) -> None:
    """A server that is fully at work still counts, and a lost count is nothing against it."""
    server = await serve(having({}, status="500 Oh"))
    started = await pool(instance_at(server.url, "openai"))
    for _ in range(10):
        with pytest.raises(Unavailable):
            await counted(started)
    (report,) = started.dispatcher.reports()
    assert (report.serving, report.in_flight, report.state) == (True, 0, "ready")


@pytest.mark.parametrize("apis", [("ollama",), ("ollama", "openai")])
async def test_nobody_can(pool: StartPool, instance_at: MakeInstance, apis: tuple[str, ...]) -> None:
    """It is said why, and which servers could; no number is made up."""
    with pytest.raises(InvalidRequest, match=r"tokens of 'smollm2' cannot be counted.*llama\.cpp and vLLM") as caught:
        await counted(await pool(instance_at(NOWHERE, *apis)))
    assert caught.value.param == "model"


@pytest.mark.parametrize("status", ["404 Not Found", "405 Method Not Allowed", "501 Not Implemented"])
async def test_a_server_without_a_tokenizer(
    serve: Serve, pool: StartPool, instance_at: MakeInstance, status: str
) -> None:
    """The same, whichever way it says that it has no such path; also when it only has half of what is needed."""
    for answers in ({}, {"/apply-template": {"prompt": "<hi>"}}):
        server = await serve(having(answers, status=status))
        with pytest.raises(InvalidRequest, match="cannot be counted"):
            await counted(await pool(instance_at(server.url, "openai")))


async def test_nobody_has_the_model(pool: StartPool, instance_at: MakeInstance) -> None:
    """That is another mistake."""
    with pytest.raises(NoCapableInstance):
        await counted(await pool(instance_at(NOWHERE, "openai")), model="nope")


@pytest.mark.parametrize(
    "answer",
    [
        {"/apply-template": {"prompt": "<hi>"}, "/tokenize": {"count": 3}},
        {"/apply-template": [], "/tokenize": {"tokens": [1]}},
        {"/tokenize": {"tokens": [1]}},
        {"/tokenize": {"count": -1}},
        {"/tokenize": {"count": True}},
    ],
)
async def test_answers_that_make_no_sense(
    serve: Serve, pool: StartPool, instance_at: MakeInstance, answer: dict[str, Any]
) -> None:
    """They are the server's fault, and no number."""
    server = await serve(having(answer))
    with pytest.raises(Unavailable, match="the tokens cannot be counted now"):
        await counted(await pool(instance_at(server.url, "openai")))


async def test_a_server_that_is_gone(pool: StartPool, instance_at: MakeInstance) -> None:
    """It may be back later: the caller can try again."""
    with pytest.raises(Unavailable, match="cannot be reached") as caught:
        await counted(await pool(instance_at(NOWHERE, "openai")))
    assert caught.value.retryable


async def test_a_server_that_takes_too_long(
    serve: Serve, pool: StartPool, instance_at: MakeInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left after a while, and its connection closed."""
    left = asyncio.Event()

    async def handle(line: Line) -> None:
        await line.request()
        await line.gone()
        left.set()

    server = await serve(handle)
    monkeypatch.setattr(tokens, "COUNT_LIMIT_S", 0.05)
    with pytest.raises(Unavailable, match=r"did not count in 0\.05 s"):
        await counted(await pool(instance_at(server.url, "openai")))
    await left.wait()


async def test_what_the_server_says_against_it(serve: Serve, pool: StartPool, instance_at: MakeInstance) -> None:
    """A conversation that the model's template refuses is the caller's mistake, in the server's words."""
    server = await serve(having({}, status="400 Bad Request"))
    with pytest.raises(InvalidRequest, match="no such thing"):
        await counted(await pool(instance_at(server.url, "openai")))


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"messages": [{"role": "user", "content": "x", "images": ["iVBORw0KGgo="]}]}, "messages[0]"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [5]}, "messages[0]"),
        ({"wings": 2}, "wings"),
    ],
)
async def test_what_cannot_be_counted(
    pool: StartPool, instance_at: MakeInstance, params: dict[str, Any], param: str
) -> None:
    """Images have tokens that no tokenizer sees; and it must be a chat."""
    with pytest.raises(InvalidRequest) as caught:
        await counted(await pool(instance_at(NOWHERE, "openai")), **params)
    assert caught.value.param == param
