"""OpenAI's Responses API: its official client, unchanged, over servers of either API, and what goes wrong."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Final

import openai
import pytest

from gleitzeit_ollama.testing import (
    DropAfter,
    ErrorLineAfter,
    Fault,
    OllamaServer,
    Reply,
    ToolCall,
    TruncateAfter,
    fixed,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gleitzeit_gateway.testing import RunningGateway

    Serve = Callable[..., Awaitable[RunningGateway]]

pytestmark = pytest.mark.fidelity

SAID: Final = "You said: hi"
PATH: Final = "/v1/responses"
BODY: Final[dict[str, Any]] = {"model": "smollm2", "input": "hi"}
WEATHER: Final[dict[str, Any]] = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {}},
    "strict": True,
}
PIXEL: Final = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
translated = pytest.mark.parametrize("apis", [("ollama",), ("openai",)], ids=["ollama", "openai"])
over_each_api = pytest.mark.parametrize("apis", [(), ("ollama",), ("openai",)], ids=["both", "ollama", "openai"])


def client_of(gateway: RunningGateway) -> openai.AsyncOpenAI:
    """The official client."""
    return openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="whatever", max_retries=0)


def _use(url: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="whatever", max_retries=0) as client:
        response = client.responses.create(model="smollm2", input="hi", instructions="Be kind.", metadata={"a": "b"})
        assert response.output_text == SAID
        assert (response.status, response.model, response.object) == ("completed", "smollm2", "response")
        assert response.instructions == "Be kind."
        assert response.usage is not None
        assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens > 0
        with client.responses.stream(model="smollm2", input="hi") as stream:
            kinds = [event.type for event in stream]
            last = stream.get_final_response()
        assert last.output_text == SAID
        assert last.usage is not None
        assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
        with pytest.raises(openai.NotFoundError, match="model 'nope' not found"):
            client.responses.create(model="nope", input="hi")
        with pytest.raises(openai.NotFoundError, match="no response is stored here"):
            client.responses.retrieve("resp_1")


@over_each_api
async def test_the_official_client(serve: Serve, ollama: OllamaServer, apis: tuple[str, ...]) -> None:
    """What a program with OpenAI's client does, it does through the gateway."""
    gateway = await serve(ollama, apis=apis)
    await asyncio.to_thread(_use, gateway.url)
    # A server that is known to have the API itself gets the bytes; others are asked in their own words.
    sent = {record.path for record in ollama.requests if record.method == "POST"}
    assert sent == {(): {PATH}, ("ollama",): {"/api/chat"}, ("openai",): {"/v1/chat/completions"}}[apis]


@over_each_api
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_thoughts_words_and_calls(serve: Serve, apis: tuple[str, ...], stream: bool) -> None:  # noqa: FBT001 - a parameter
    """They come as items of their own, in that order; put back into the conversation they are understood."""
    said = Reply(
        ["done"], ["hm", " hm"], [ToolCall("weather", {"city": "Paris"}), ToolCall("weather", {"city": "Rome"})]
    )
    async with OllamaServer(models=["smollm2+tools+thinking"], reply=lambda _: said) as server:
        gateway = await serve(server, apis=apis)
        asked: Any = {**BODY, "tools": [WEATHER], "reasoning": {"effort": "low"}}
        async with client_of(gateway) as client:
            if stream:
                async with client.responses.stream(**asked) as events:
                    response: Any = await events.get_final_response()
            else:
                response = await client.responses.create(**asked)
            results = [
                {"type": "function_call_output", "call_id": item.call_id, "output": "11 degrees"}
                for item in response.output
                if item.type == "function_call"
            ]
            before = [{"role": "user", "content": "hi"}, *response.output]
            again = await client.responses.create(model="smollm2", input=[*before, *results], tools=[WEATHER])
        sent = json.loads(server.requests[-1].body).get("messages")
    thoughts, words, *calls = response.output
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call", "function_call"]
    # As Ollama itself tells them, and reads them when they come back.
    assert [part.text for part in thoughts.summary] == [thoughts.encrypted_content] == ["hm hm"]
    assert words.content[0].text == "done"
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [
        ("weather", {"city": "Paris"}),
        ("weather", {"city": "Rome"}),
    ]
    assert again.status == "completed"
    if apis:
        assert [message["role"] for message in sent] == ["user", "assistant", "tool", "tool"]
        assert len(sent[1]["tool_calls"]) == 2
        assert "hm hm" in (sent[1].get("thinking"), sent[1].get("reasoning_content"))


@over_each_api
async def test_the_events_of_a_stream(serve: Serve, ollama: OllamaServer, apis: tuple[str, ...]) -> None:
    """Each event is named by its type and numbered, and the last tells the whole response."""
    gateway = await serve(ollama, apis=apis)
    answered = await gateway.ask(PATH, {**BODY, "stream": True})
    assert answered.headers["Content-Type"] == "text/event-stream"
    assert answered.headers["Cache-Control"] == "no-cache"
    blocks = [block.split("\n") for block in answered.text.split("\n\n")[:-1]]
    events = [json.loads(data.removeprefix("data: ")) for _, data in blocks]
    assert [name for name, _ in blocks] == [f"event: {event['type']}" for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert list(dict.fromkeys(kinds)) == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.delta", "output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    assert "".join(event["delta"] for event in events if event["type"].endswith(".delta")) == SAID
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == SAID


@translated
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_an_answer_that_was_cut_says_so(
    serve: Serve,
    ollama: OllamaServer,
    apis: tuple[str, ...],
    stream: bool,  # noqa: FBT001 - a parameter
) -> None:
    """An answer that reached the limit is incomplete, and says why."""
    gateway = await serve(ollama, apis=apis)
    async with client_of(gateway) as client:
        if stream:
            kinds = [event async for event in await client.responses.create(**BODY, max_output_tokens=1, stream=True)]
            response: Any = kinds[-1].response  # type: ignore[union-attr]
            assert kinds[-1].type == "response.incomplete"
            assert kinds[-2].item.status == "incomplete"  # type: ignore[union-attr]
        else:
            response = await client.responses.create(**BODY, max_output_tokens=1)
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output[-1].status == "incomplete"


async def test_images_schemas_and_log_probabilities(serve: Serve) -> None:
    """They reach a server of either API, and what it says of its tokens comes back."""
    asked: dict[str, Any] = {
        "model": "smollm2",
        "input": [
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "hi"},
                    {"type": "input_image", "image_url": f"data:image/png;base64,{PIXEL}", "detail": "auto"},
                ],
            }
        ],
        "text": {"format": {"type": "json_schema", "name": "x", "strict": True, "schema": {"type": "object"}}},
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
    }
    for apis in (["ollama"], ["openai"]):
        async with OllamaServer(models=["smollm2+vision"], reply=lambda _: Reply(["{}"])) as server:
            gateway = await serve(server, apis=apis)
            async with client_of(gateway) as client:
                response: Any = await client.responses.create(**asked)
            sent = json.loads(server.requests[-1].body)
        assert PIXEL in json.dumps(sent["messages"])
        assert (sent.get("format") or sent["response_format"]["json_schema"]["schema"]) == {"type": "object"}
        assert response.output_text == "{}"
        assert len(response.output[0].content[0].logprobs[0].top_logprobs) == 2


@pytest.mark.parametrize(
    ("more", "param", "why"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "no response is stored here"),
        ({"conversation": "conv_1"}, "conversation", "no response is stored here"),
        ({"store": True}, "store", "no response is stored here"),
        ({"background": True}, "background", "no response is stored here"),
        ({"prompt": {"id": "p"}}, "prompt", "prompts are not stored here"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "of type 'function'"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice.type", "'web_search' cannot be carried over"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].id", "no response is stored here"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type", "'computer_call' cannot be carried over"),
        ({"input": None}, "input", "'input' is required"),
        ({"colour": "red"}, "colour", "unknown field 'colour'"),
    ],
)
async def test_what_cannot_be_done_is_refused(
    serve: Serve, ollama: OllamaServer, more: dict[str, Any], param: str, why: str
) -> None:
    """The error names the field and says why, in OpenAI's envelope, and no server is asked."""
    gateway = await serve(ollama, apis=["ollama"])
    answered = await gateway.ask(PATH, {**BODY, **more})
    assert answered.status == 400
    assert answered.json["error"]["type"] == "invalid_request_error"
    assert why in answered.json["error"]["message"]
    assert repr(param) in answered.json["error"]["message"]
    assert not any(record.path == "/api/chat" for record in ollama.requests)


@over_each_api
@pytest.mark.parametrize("fault", [DropAfter(5), TruncateAfter(5), ErrorLineAfter(5)], ids=["drop", "cut", "error"])
async def test_a_stream_that_breaks_off(
    serve: Serve, apis: tuple[str, ...], ollama: OllamaServer, fault: Fault
) -> None:
    """Its last event is an error with the next number, and it has no clean end."""
    ollama.reply = fixed("one two three four five six seven eight")
    gateway = await serve(ollama, apis=apis)
    ollama.script.always(fault)
    answered = await gateway.ask(PATH, {**BODY, "stream": True})
    assert not answered.complete
    events = [json.loads(block.partition("data: ")[2]) for block in answered.text.split("\n\n")[:-1]]
    assert events[-1]["type"] == "error"
    assert events[-1]["message"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert "response.completed" not in answered.text


@translated
async def test_an_answer_repeats_its_request(serve: Serve, ollama: OllamaServer, apis: tuple[str, ...]) -> None:
    """What a caller attached to it, its tools and its limits."""
    gateway = await serve(ollama, apis=apis)
    more = {"metadata": {"a": "b"}, "max_output_tokens": 50, "temperature": 0.5, "safety_identifier": "x"}
    answer = (await gateway.ask(PATH, {**BODY, **more})).json
    assert {name: answer[name] for name in more} == more
    assert (answer["store"], answer["background"], answer["previous_response_id"]) == (False, False, None)


async def test_bytes_pass_to_a_server_that_has_the_api(serve: Serve, ollama: OllamaServer) -> None:
    """Unknown fields included; a field that needs a stored response is refused all the same."""
    gateway = await serve(ollama)
    body = {**BODY, "colour": {"a": 1}, "store": False, "stream": True}
    answered = await gateway.ask(PATH, body)
    assert json.loads(ollama.requests[-1].body) == body
    assert answered.body.count(b"event: ") == len(answered.text.split("\n\n")) - 1
    before = len(ollama.requests)
    refused = await gateway.ask(PATH, {**body, "previous_response_id": "resp_1"})
    assert (refused.status, len(ollama.requests)) == (400, before)


@pytest.mark.parametrize("version", ["0.13.2", "0.0.0", "dev"])
async def test_an_older_server_is_asked_in_its_own_words(serve: Serve, ollama: OllamaServer, version: str) -> None:
    """Ollama has the API since 0.13.3."""
    ollama.version = version
    gateway = await serve(ollama)
    assert (await gateway.ask(PATH, BODY)).status == 200
    assert ollama.requests[-1].path == "/api/chat"


async def test_what_was_never_stored_is_not_found(serve: Serve, ollama: OllamaServer) -> None:
    """Responses cannot be read, ended or deleted afterwards, and each answer says why."""
    gateway = await serve(ollama)
    for verb, path in (("GET", "resp_1"), ("GET", "resp_1/input_items"), ("DELETE", "resp_1")):
        answered = await gateway.ask(f"{PATH}/{path}", verb=verb)
        assert answered.status == 404
        assert "'resp_1' not found: no response is stored here" in answered.json["error"]["message"]
    assert (await gateway.ask(f"{PATH}/resp_1/cancel", {})).status == 501


async def test_a_missing_key(serve: Serve, ollama: OllamaServer) -> None:
    """Is told in OpenAI's envelope."""
    gateway = await serve(ollama, keys=[{"name": "alice", "key": "a-key-of-at-least-16-characters"}])
    answered = await gateway.ask(PATH, BODY)
    assert (answered.status, answered.json["error"]["type"]) == (401, "authentication_error")
