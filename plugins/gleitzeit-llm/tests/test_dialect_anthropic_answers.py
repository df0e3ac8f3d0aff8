"""The dialect of Anthropic's Messages API: what clients are answered, whole and in parts."""

from __future__ import annotations

import json
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_llm.dialects import DIALECTS
from gleitzeit_llm.dialects.anthropic_client import AnthropicClient
from gleitzeit_llm.protocol import CHAT, final, part

from .anthropic_samples import BASE, CALL, CLIENT, HI, MESSAGES, USE

if TYPE_CHECKING:
    from collections.abc import Callable

    from gleitzeit_llm.protocol import Json

pytestmark = pytest.mark.fidelity
NOW = "2026-11-21T04:00:00.000000Z"


def _events(data: bytes) -> list[Any]:
    """The events of a stream written here; each is named by its type."""
    *blocks, rest = data.decode().split("\n\n")
    assert rest == ""
    found = []
    for block in blocks:
        name, line = block.split("\n")
        found.append(json.loads(line.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def _streamed(*parts: Json) -> list[Any]:
    encoder = CLIENT.stream_encoder(CLIENT.parse(MESSAGES, json.dumps({**BASE, "stream": True}).encode()))
    return _events(b"".join(map(encoder.part, parts)) + encoder.finish())


def _whole(answer: Json) -> Any:  # noqa: ANN401 - any JSON
    return json.loads(CLIENT.answer(CLIENT.parse(MESSAGES, json.dumps(BASE).encode()), answer))


def test_a_whole_answer() -> None:
    """Thoughts, words and calls are blocks, and the counts are Anthropic's."""
    calls = [CALL, {"function": {"name": "g"}}]
    counts = {"prompt_eval_count": 3, "eval_count": 4}
    answer = final(CHAT, "m", NOW, reason="stop", text="so", thinking="hm", tool_calls=calls, counts=counts)
    assert _whole(answer) == {
        "id": "msg_7",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [
            {"type": "thinking", "thinking": "hm", "signature": ""},
            {"type": "text", "text": "so"},
            USE,
            {"type": "tool_use", "id": "toolu_7", "name": "g", "input": {}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 3,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 4,
        },
    }


@pytest.mark.parametrize(
    ("reason", "calls", "expected"),
    [
        ("stop", [], "end_turn"),
        ("", [], "end_turn"),
        ("stop", [CALL], "tool_use"),
        ("length", [], "max_tokens"),
        ("length", [CALL], "max_tokens"),
        ("content_filter", [], "refusal"),
    ],
)
def test_stop_reasons(reason: str, calls: list[Json], expected: str) -> None:
    """In Anthropic's words, whole and in parts."""
    assert _whole(final(CHAT, "m", NOW, reason=reason, tool_calls=calls))["stop_reason"] == expected
    parts = [part(CHAT, "m", NOW, tool_calls=calls)] if calls else []
    assert _streamed(*parts, final(CHAT, "m", NOW, reason=reason))[-2]["delta"]["stop_reason"] == expected


@pytest.mark.parametrize("name", ["stop_reason", "matched_stop"])
def test_the_stop_sequence_is_told_where_it_is_known(name: str) -> None:
    """Both vLLM and SGLang tell the text that ended an answer, and a number where it was a token of the model's own."""
    instance, params = DIALECTS["openai"].instance, {"model": "m", "messages": [], "options": {"stop": ["END"]}}
    for found, reason, sequence in (("END", "stop_sequence", "END"), (2, "end_turn", None), (None, "end_turn", None)):
        choice = {"index": 0, "finish_reason": "stop", name: found}
        body = json.dumps({"choices": [{**choice, "message": {"content": "x"}}]}).encode()
        answer = instance.decode_answer(CHAT, params, body)
        whole = _whole(answer)
        assert (whole["stop_reason"], whole["stop_sequence"]) == (reason, sequence)
        decoder = instance.stream_decoder(CHAT, params)
        chunk = json.dumps({"choices": [{**choice, "delta": {"content": "x"}}]})
        parts = decoder.feed(f"data: {chunk}\n\ndata: [DONE]\n\n".encode())
        assert _streamed(*parts)[-2]["delta"] == {"stop_reason": reason, "stop_sequence": sequence}
        # Ollama tells nothing of it.
        client = DIALECTS["ollama"].client
        asked = client.parse(client.endpoints["/api/chat"], b'{"model":"m"}')
        told = [json.loads(client.answer(asked, answer)), json.loads(client.stream_encoder(asked).part(parts[-1]))]
        assert not any("stop_sequence" in one for one in told)
    called = {**final(CHAT, "m", NOW, reason="stop", tool_calls=[CALL]), "stop_sequence": "END"}
    assert (_whole(called)["stop_reason"], _whole(called)["stop_sequence"]) == ("tool_use", None)


def test_an_answer_without_words_has_no_block() -> None:
    """Whole and in parts; a ping needs a block to come after."""
    nothing = final(CHAT, "m", NOW, reason="stop")
    assert _whole(nothing)["content"] == []
    assert [event["type"] for event in _streamed(nothing)] == ["message_start", "message_delta", "message_stop"]


def test_the_events_of_a_stream() -> None:
    """Each block is opened, filled and closed before the next; a ping follows the first opening; counts come last."""
    events = _streamed(
        part(CHAT, "m", NOW, thinking="h"),
        part(CHAT, "m", NOW, thinking="m"),
        part(CHAT, "m", NOW, text="s"),
        part(CHAT, "m", NOW, text="o", tool_calls=[CALL, {"function": {"name": "g", "arguments": {}}}]),
        part(CHAT, "m", NOW),
        final(CHAT, "m", NOW, reason="stop", counts={"prompt_eval_count": 3, "eval_count": 4}),
    )
    assert events.pop(0)["message"]["usage"]["output_tokens"] == 0

    def opened(index: int, block: Json) -> Json:
        return {"type": "content_block_start", "index": index, "content_block": block}

    def delta(index: int, kind: str, name: str, value: str) -> Json:
        return {"type": "content_block_delta", "index": index, "delta": {"type": f"{kind}_delta", name: value}}

    usage = {"input_tokens": 3, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 4}
    assert events == [
        opened(0, {"type": "thinking", "thinking": "", "signature": ""}),
        {"type": "ping"},
        delta(0, "thinking", "thinking", "h"),
        delta(0, "thinking", "thinking", "m"),
        {"type": "content_block_stop", "index": 0},
        opened(1, {"type": "text", "text": ""}),
        delta(1, "text", "text", "s"),
        delta(1, "text", "text", "o"),
        {"type": "content_block_stop", "index": 1},
        opened(2, {**USE, "input": {}}),
        delta(2, "input_json", "partial_json", '{"a":1}'),
        {"type": "content_block_stop", "index": 2},
        opened(3, {"type": "tool_use", "id": "toolu_7", "name": "g", "input": {}}),
        delta(3, "input_json", "partial_json", "{}"),
        {"type": "content_block_stop", "index": 3},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None}, "usage": usage},
        {"type": "message_stop"},
    ]


def _put_together(events: list[Any]) -> list[Json]:
    """The blocks that a client makes of a stream; each event must fit to those before it."""
    blocks: list[Json] = []
    pieces: list[str] = []
    for event in events:
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append(event["content_block"])
            pieces = []
        elif event["type"] == "content_block_delta":
            assert event["index"] == len(blocks) - 1
            pieces.append(next(value for name, value in event["delta"].items() if name != "type"))
        elif event["type"] == "content_block_stop":
            assert event["index"] == len(blocks) - 1
            name = {"text": "text", "thinking": "thinking", "tool_use": "input"}[blocks[-1]["type"]]
            blocks[-1][name] = json.loads("".join(pieces)) if name == "input" else "".join(pieces)
    return blocks


@pytest.mark.parametrize(
    ("api", "whole", "stream"),
    [
        ("openai", "llamacpp/chat", "llamacpp/chat_stream"),
        ("openai", "llamacpp/chat_reasoning", "llamacpp/chat_reasoning_stream"),
        ("openai", "llamacpp/chat_tool_call", "llamacpp/chat_tool_call_stream"),
        ("ollama", "ollama/chat", "ollama/chat_stream"),
        ("ollama", "ollama/chat_thinking", "ollama/chat_thinking_stream"),
        ("ollama", "ollama/chat_tool_call", "ollama/chat_tool_call_stream"),
    ],
)
def test_what_servers_answer(recorded: Callable[[str], Any], api: str, whole: str, stream: str) -> None:
    """Recorded answers of real servers give the same kinds of blocks, and the same reason, whole and in parts."""
    params, instance = {"model": "m", "messages": HI}, DIALECTS[api].instance
    message = _whole(instance.decode_answer(CHAT, params, recorded(whole).body))
    decoder = instance.stream_decoder(CHAT, params)
    events = _streamed(*decoder.feed(recorded(stream).body + b"\n\n"), *decoder.close())
    assert decoder.finished
    blocks = _put_together(events)
    assert [block["type"] for block in blocks] == [block["type"] for block in message["content"]] != []
    assert events[-2]["delta"]["stop_reason"] == message["stop_reason"]
    assert events[-2]["usage"]["output_tokens"] > 0
    for found, expected in zip(blocks, message["content"], strict=True):
        assert found.keys() == expected.keys()
        assert found.get("name") == expected.get("name")
        assert found.get("text") or found.get("thinking") or isinstance(found.get("input"), dict)


def test_a_stream_that_breaks_has_no_clean_end() -> None:
    """Without a final part nothing says that the message is complete; the error is an event of its own."""
    encoder = CLIENT.stream_encoder(CLIENT.parse(MESSAGES, json.dumps(BASE).encode()))
    encoder.part(part(CHAT, "m", NOW, text="s"))
    assert encoder.finish() == b""
    assert _events(encoder.error("gone", "lost")) == [
        {"type": "error", "error": {"type": "api_error", "message": "gone"}}
    ]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (408, "timeout_error"),
        (413, "request_too_large"),
        (415, "invalid_request_error"),
        (422, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "api_error"),
        (504, "timeout_error"),
        (529, "overloaded_error"),
    ],
)
def test_errors(status: int, kind: str) -> None:
    """Anthropic's envelope, with the type that goes with the status."""
    body = json.loads(CLIENT.error_body(status, "no", "code", "param"))
    assert body == {"type": "error", "error": {"type": kind, "message": "no"}}


def test_ids_are_random() -> None:
    """Of a message and of its calls; what a server has given an id keeps it."""
    ids = count()
    client = AnthropicClient(new_id=lambda: str(next(ids)))
    parsed = client.parse(MESSAGES, json.dumps(BASE).encode())
    answer = final(CHAT, "m", NOW, reason="stop", tool_calls=[{"function": {"name": "g"}}, CALL])
    found = json.loads(client.answer(parsed, answer))
    assert (found["id"], [block["id"] for block in found["content"]]) == ("msg_0", ["toolu_1", "toolu_1"])
    plain = AnthropicClient()
    assert json.loads(plain.answer(parsed, answer))["id"] != json.loads(plain.answer(parsed, answer))["id"]
