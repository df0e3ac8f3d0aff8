"""The Anthropic client API: its official client, unchanged, over servers of either API, and what goes wrong."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Final

import anthropic
import pytest

from gleitzeit_ollama.testing import (
    Busy,
    DropAfter,
    ErrorLineAfter,
    Fault,
    Gate,
    OllamaServer,
    Reply,
    ToolCall,
    TruncateAfter,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anthropic.types import MessageParam, ToolParam

    from gleitzeit_gateway.testing import Answered, RunningGateway

    Serve = Callable[..., Awaitable[RunningGateway]]

pytestmark = pytest.mark.fidelity

SAID: Final = "You said: hi"
MESSAGES: Final[list[MessageParam]] = [{"role": "user", "content": "hi"}]
BODY: Final[dict[str, Any]] = {"model": "smollm2", "max_tokens": 64, "messages": MESSAGES}
WEATHER: Final[ToolParam] = {"name": "weather", "input_schema": {"type": "object", "properties": {}}}
PIXEL: Final = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
KEY: Final = "a-key-of-at-least-16-characters"
PATH: Final = "/v1/messages"
COUNT: Final = "/v1/messages/count_tokens"
over_each_api = pytest.mark.parametrize("apis", [(), ("ollama",), ("openai",)], ids=["both", "ollama", "openai"])
streaming_or_not = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])


def client_of(gateway: RunningGateway, key: str = KEY) -> anthropic.AsyncAnthropic:
    """The official client."""
    return anthropic.AsyncAnthropic(base_url=gateway.url, api_key=key, max_retries=0)


def events_of(answered: Answered) -> list[Any]:
    """The events of a stream, each of which is named by its type."""
    found = []
    for block in answered.text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


def error_of(answered: Answered) -> tuple[str, str]:
    """Type and message of an error answer, which is in Anthropic's envelope."""
    assert answered.headers["Content-Type"] == "application/json"
    assert answered.json.keys() == {"type", "error", "request_id"}
    assert answered.json["request_id"] == answered.headers["request-id"] == answered.headers["X-Request-Id"]
    assert answered.json["type"] == "error"
    assert answered.json["error"].keys() == {"type", "message"}
    return answered.json["error"]["type"], answered.json["error"]["message"]


def _use(url: str) -> None:
    with anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0) as client:
        message = client.messages.create(model="smollm2", max_tokens=64, system="Be kind.", messages=MESSAGES)
        assert [block.type for block in message.content] == ["text"]
        assert message.content[0].type == "text"
        assert message.content[0].text == SAID
        assert (message.role, message.model, message.stop_reason) == ("assistant", "smollm2", "end_turn")
        assert message.usage.input_tokens > 0
        assert message.usage.output_tokens > 0
        assert message._request_id
        with client.messages.stream(model="smollm2", max_tokens=64, messages=MESSAGES) as stream:
            assert "".join(stream.text_stream) == SAID
            last = stream.get_final_message()
        assert last.stop_reason == "end_turn"
        assert last.usage.input_tokens > 0
        assert last.usage.output_tokens > 0
        with pytest.raises(anthropic.NotFoundError, match="model 'nope' not found"):
            client.messages.create(model="nope", max_tokens=64, messages=MESSAGES)


@over_each_api
async def test_the_official_client(serve: Serve, ollama: OllamaServer, apis: tuple[str, ...]) -> None:
    """What a program with Anthropic's client does, it does through the gateway."""
    gateway = await serve(ollama, apis=apis)
    await asyncio.to_thread(_use, gateway.url)


@over_each_api
async def test_the_official_client_async(serve: Serve, ollama: OllamaServer, apis: tuple[str, ...]) -> None:
    """The same with its asynchronous client."""
    gateway = await serve(ollama, apis=apis)
    async with client_of(gateway) as client:
        message = await client.messages.create(**BODY)
        assert message.content[0].text == SAID
        stream = await client.messages.create(**BODY, stream=True)
        seen = [event async for event in stream]
    # The client keeps pings for itself.
    kinds = list(dict.fromkeys(event.type for event in seen))
    assert kinds == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


@over_each_api
@streaming_or_not
async def test_tool_calls_and_thoughts(serve: Serve, apis: tuple[str, ...], stream: bool) -> None:  # noqa: FBT001 - a parameter
    """Thoughts, words and calls come as blocks of their own, in that order, and the reason says why it stopped."""
    said = Reply(["done"], ["hm"], [ToolCall("weather", {"city": "Paris"}), ToolCall("weather", {"city": "Rome"})])
    async with OllamaServer(models=["smollm2+tools+thinking"], reply=lambda _: said) as server:
        gateway = await serve(server, apis=apis)
        asked = {**BODY, "tools": [WEATHER], "thinking": {"type": "enabled", "budget_tokens": 1024}}
        async with client_of(gateway) as client:
            if stream:
                async with client.messages.stream(**asked) as parts:
                    message = await parts.get_final_message()
            else:
                message = await client.messages.create(**asked)
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]
    thought, text, *calls = [block.model_dump() for block in message.content]
    assert (thought["thinking"], thought["signature"], text["text"]) == ("hm", "", "done")
    assert [(call["name"], call["input"]) for call in calls] == [
        ("weather", {"city": "Paris"}),
        ("weather", {"city": "Rome"}),
    ]
    assert calls[0]["id"] != calls[1]["id"]
    assert message.stop_reason == "tool_use"


@over_each_api
async def test_a_conversation_goes_on_with_what_was_answered(serve: Serve, apis: tuple[str, ...]) -> None:
    """An answer with a call goes back as it came, with the result, and all of it reaches the server."""
    said = Reply(["Let me see."], [], [ToolCall("weather", {"city": "Paris"})])
    async with OllamaServer(models=["smollm2+tools"], reply=lambda _: said) as server:
        gateway = await serve(server, apis=apis)
        async with client_of(gateway) as client:
            asked = {**BODY, "tools": [WEATHER], "system": [{"type": "text", "text": "Be brief."}]}
            first = await client.messages.create(**asked)
            call = first.content[-1]
            assert call.type == "tool_use"
            result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "sunny"}]}
            more = [
                {"role": "assistant", "content": first.content},
                {"role": "user", "content": [result, {"type": "text", "text": "and?"}]},
            ]
            await client.messages.create(**{**asked, "messages": [*MESSAGES, *more]})
        sent = json.loads(server.requests[-1].body)["messages"]
    assert [message["role"] for message in sent] == ["system", "user", "assistant", "tool", "user"]
    assert [message["content"] for message in sent] == ["Be brief.", "hi", "Let me see.", "sunny", "and?"]
    (made,) = sent[2]["tool_calls"]
    assert made["id"] == sent[3]["tool_call_id"] == call.id


@over_each_api
async def test_images(serve: Serve, apis: tuple[str, ...]) -> None:
    """An image reaches the server in the form that it knows."""
    async with OllamaServer(models=["smollm2+vision"]) as server:
        gateway = await serve(server, apis=apis)
        source = {"type": "base64", "media_type": "image/png", "data": PIXEL}
        content = [{"type": "text", "text": "What is it?"}, {"type": "image", "source": source}]
        answered = await gateway.ask(PATH, {**BODY, "messages": [{"role": "user", "content": content}]})
        assert answered.status == 200
        assert PIXEL in server.requests[-1].body.decode()


async def test_the_order_of_events(serve: Serve, ollama: OllamaServer) -> None:
    """As Anthropic's own server sends them, the counts at the end."""
    gateway = await serve(ollama)
    answered = await gateway.ask(PATH, {**BODY, "stream": True})
    assert answered.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert answered.headers["Cache-Control"] == "no-cache"
    events = events_of(answered)
    kinds = [event["type"] for event in events]
    assert kinds[:3] == ["message_start", "content_block_start", "ping"]
    assert set(kinds[3:-3]) == {"content_block_delta"}
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert events[0]["message"]["content"] == []
    assert events[0]["message"]["stop_reason"] is None
    assert events[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] > 0


# -- what goes wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "unexpected EOF"),
        ({"max_tokens": 4, "messages": MESSAGES}, "model is required"),
        ({"model": "smollm2", "messages": MESSAGES}, "'max_tokens' is required"),
        ({"model": "smollm2", "max_tokens": 4}, "'messages' is required"),
        ({**BODY, "container": "c"}, "'container' cannot be carried over"),
        ({**BODY, "wings": 2}, "unknown field 'wings'"),
        ({**BODY, "messages": [{"role": "user", "content": [{"type": "document"}]}]}, "messages[0].content[0].type"),
    ],
)
async def test_mistakes_are_named(serve: Serve, ollama: OllamaServer, body: object, words: str) -> None:
    """What is wrong is said in Anthropic's envelope, and the server is not bothered."""
    gateway = await serve(ollama)
    answered = await gateway.ask(PATH, body)
    assert answered.status == 400
    kind, message = error_of(answered)
    assert kind == "invalid_request_error"
    assert words in message
    assert PATH not in [request.path for request in ollama.requests]


async def test_a_refusal_at_the_door_says_its_id(serve: Serve, ollama: OllamaServer) -> None:
    """Also who has no key is told by which id to ask what was wrong."""
    gateway = await serve(ollama, keys=[{"name": "amy", "key": "k" * 20}])
    answered = await gateway.ask(PATH, BODY)
    assert (answered.status, error_of(answered)[0]) == (401, "authentication_error")


async def test_other_refusals_have_the_envelope_too(serve: Serve, ollama: OllamaServer) -> None:
    """What the gateway itself refuses: a body that is too large, a server that is gone, one that comes too late."""
    gateway = await serve(ollama, max_body_bytes=1024)
    answered = await gateway.ask(PATH, {**BODY, "system": "x" * 2048})
    assert (answered.status, error_of(answered)[0]) == (413, "request_too_large")
    gone = await serve("http://127.0.0.1:1", apis=("openai",))
    answered = await gone.ask(PATH, BODY)
    assert (answered.status, error_of(answered)[0]) == (503, "api_error")
    ollama.gate = Gate()
    late = await serve(ollama, route={"timeout_s": 0.2})
    answered = await late.ask(PATH, {**BODY, "stream": True})
    assert (answered.status, error_of(answered)[0]) == (504, "timeout_error")


@streaming_or_not
async def test_a_forced_call(serve: Serve, ollama: OllamaServer, stream: bool) -> None:  # noqa: FBT001 - a parameter
    """A server that only has OpenAI's API is told so; an Ollama would skip it without a word, so it is refused there."""
    forced = {**BODY, "stream": stream, "tools": [WEATHER], "tool_choice": {"type": "any"}}
    gateway = await serve(ollama)
    answered = await gateway.ask(PATH, forced)
    assert answered.status == 400
    assert "'tool_choice' cannot be carried over to an Ollama server" in error_of(answered)[1]
    async with OllamaServer(models=["smollm2+tools"]) as server:
        other = await serve(server, apis=("openai",))
        assert (await other.ask(PATH, forced)).status == 200
        assert json.loads(server.requests[-1].body)["tool_choice"] == "required"


async def test_keys(serve: Serve, ollama: OllamaServer) -> None:
    """The client's own way to send a key is understood, and a wrong one is the error that the client knows."""
    gateway = await serve(ollama, keys=[{"name": "alice", "key": KEY}])
    async with client_of(gateway) as client:
        assert (await client.messages.create(**BODY)).content[0].text == SAID
    async with client_of(gateway, "wrong") as client:
        with pytest.raises(anthropic.AuthenticationError, match="a valid API key is needed"):
            await client.messages.create(**BODY)


async def test_a_full_queue(serve: Serve, ollama: OllamaServer) -> None:
    """Overloaded, in Anthropic's status and words, and when to come back."""
    ollama.gate = gate = Gate()
    gateway = await serve(ollama, hub={"max_concurrent": 1}, route={"max_queue": 1})
    asked = [asyncio.create_task(gateway.ask(PATH, BODY))]
    await ollama.wait_for(lambda server: server.in_flight == 1)
    asked.append(asyncio.create_task(gateway.ask(PATH, BODY)))
    await gateway.until(lambda: gateway.waiting == 1)
    answered = await gateway.ask(PATH, BODY)
    assert answered.status == 529
    assert error_of(answered)[0] == "overloaded_error"
    assert int(answered.headers["Retry-After"]) >= 1
    assert answered.headers["X-Gleitzeit-Error"] == "queue_full"
    async with client_of(gateway) as client:
        with pytest.raises(anthropic.APIStatusError) as caught:
            await client.messages.create(**BODY)
    assert caught.value.status_code == 529
    gate.open()
    assert [one.status for one in await asyncio.gather(*asked)] == [200, 200]


@streaming_or_not
async def test_a_busy_server(serve: Serve, ollama: OllamaServer, stream: bool) -> None:  # noqa: FBT001 - a parameter
    """What a server says when it has too much to do is overloaded too, and its Retry-After is passed on."""
    ollama.script.always(Busy(retry_after_s=7))
    gateway = await serve(ollama, apis=("ollama",))
    answered = await gateway.ask(PATH, {**BODY, "stream": stream})
    assert answered.status == 529
    assert error_of(answered)[0] == "overloaded_error"
    assert answered.headers["Retry-After"] == "7"


@pytest.mark.parametrize("fault", [DropAfter(2), TruncateAfter(2), ErrorLineAfter(2)], ids=["drop", "cut", "error"])
@pytest.mark.parametrize("apis", [("ollama",), ("openai",)], ids=["ollama", "openai"])
async def test_a_stream_that_breaks(serve: Serve, ollama: OllamaServer, fault: Fault, apis: tuple[str, ...]) -> None:
    """It ends with an event that says so and with a cut connection, and never as if it were complete."""
    ollama.script.next(fault)
    gateway = await serve(ollama, apis=apis)
    answered = await gateway.ask(PATH, {**BODY, "stream": True})
    assert (answered.status, answered.complete) == (200, False)
    *events, last = events_of(answered)
    assert [event["type"] for event in events[:2]] == ["message_start", "content_block_start"]
    assert not {"message_delta", "message_stop"} & {event["type"] for event in events}
    assert last["error"].keys() == {"type", "message"}
    assert last["error"]["type"] == "api_error"
    ollama.script.next(fault)
    async with client_of(gateway) as client:
        with pytest.raises(anthropic.APIError):
            async with client.messages.stream(**BODY) as parts:
                await parts.get_final_message()


async def test_tokens_that_nobody_can_count(serve: Serve, ollama: OllamaServer) -> None:
    """An Ollama has no tokenizer that can be asked: that is said, and no number is made up."""
    gateway = await serve(ollama)
    answered = await gateway.ask(COUNT, {"model": "smollm2", "messages": MESSAGES})
    assert answered.status == 400
    kind, message = error_of(answered)
    assert kind == "invalid_request_error"
    assert message.startswith("tokens of 'smollm2' cannot be counted")
    answered = await gateway.ask(COUNT, {"model": "nope", "messages": MESSAGES})
    assert (answered.status, *error_of(answered)) == (404, "not_found_error", "model 'nope' not found")


async def test_versions_and_betas_are_taken(serve: Serve, ollama: OllamaServer) -> None:
    """The headers that clients send, or none of them; a page may send them from a browser."""
    gateway = await serve(ollama)
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "x-2026-01-01"}
    assert (await gateway.ask(f"{PATH}?beta=true", BODY, headers=headers)).status == 200
    assert (await gateway.ask(PATH, BODY)).status == 200
    allowed = await gateway.ask(PATH, verb="OPTIONS", headers={"Origin": "http://localhost:3000"})
    assert "anthropic-version" in allowed.headers["Access-Control-Allow-Headers"]
    assert (await gateway.ask(PATH)).status == 405
