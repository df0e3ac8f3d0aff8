"""Streams of instances: the parts do not depend on how the bytes are cut, and every broken end is told apart."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from itertools import count, pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gleitzeit_llm.dialects.base import Parsed
from gleitzeit_llm.dialects.ollama import OllamaInstance
from gleitzeit_llm.dialects.openai_client import OpenAIClient
from gleitzeit_llm.dialects.openai_instance import OpenAIInstance
from gleitzeit_llm.protocol import CHAT, GENERATE, UpstreamError, final, part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

pytestmark = pytest.mark.fidelity

NOW = datetime(2026, 11, 21, 4, 0, tzinfo=UTC)
STAMP = "2026-11-21T04:00:00.000000Z"
PARAMS = {"model": "mine"}
DONE = b"data: [DONE]\n\n"


def _instance() -> OpenAIInstance:
    """An instance dialect on which no time passes."""
    return OpenAIInstance(wall=lambda: NOW, monotonic=lambda: 100.0)


def _chunk(delta: dict[str, Any] | None = None, finish: str | None = None, **rest: Any) -> bytes:  # noqa: ANN401
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return b"data: " + json.dumps({"choices": choices, **rest}).encode() + b"\n\n"


def _cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    ends = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(ends)]


def _decode(decoder: Any, chunks: Iterable[bytes]) -> list[Any]:  # noqa: ANN401 - either decoder
    parts = [part for chunk in chunks for part in decoder.feed(chunk)]
    return [*parts, *decoder.close()]


def _chat(*chunks: bytes) -> list[Any]:
    return _decode(_instance().stream_decoder(CHAT, PARAMS), chunks)


def _texts(parts: Iterable[Any]) -> list[str]:
    return [part["message"]["content"] for part in parts]


CUTS = st.lists(st.integers(0, 10_000), max_size=12)


@pytest.mark.parametrize(
    "name",
    [
        "chat_stream",
        "chat_stream_no_usage",
        "chat_tool_call_stream",
        "chat_tool_call_cut_stream",
        "chat_logprobs_stream",
        "chat_reasoning_stream",
    ],
)
def test_cuts_do_not_change_the_parts_of_openai(recorded: Callable[[str], Any], name: str) -> None:
    """Recorded streams give the same parts, cut anywhere (inside an É, a CRLF, a number), with any line end."""
    data = recorded(f"llamacpp/{name}").body
    whole = _chat(data)

    @settings(max_examples=50)
    @given(cuts=CUTS, newline=st.sampled_from([b"\n", b"\r\n", b"\r"]))
    def check(cuts: list[int], newline: bytes) -> None:
        decoder = _instance().stream_decoder(CHAT, PARAMS)
        assert _decode(decoder, _cut(data.replace(b"\n", newline), cuts)) == whole
        assert decoder.finished

    check()
    assert _chat(*(data[place : place + 1] for place in range(len(data)))) == whole


@pytest.mark.parametrize("name", ["chat_stream", "chat_tool_call_stream", "generate_stream"])
def test_cuts_do_not_change_the_parts_of_ollama(recorded: Callable[[str], Any], name: str) -> None:
    """Ollama's recorded streams, cut anywhere and with or without CRs, give the same parts."""
    exchange = recorded(f"ollama/{name}")
    expected = [{**item, "model": "mine"} for item in exchange.parts]

    @settings(max_examples=50)
    @given(cuts=CUTS, newline=st.sampled_from([b"\n", b"\r\n", b"\n\n"]))
    def check(cuts: list[int], newline: bytes) -> None:
        decoder = OllamaInstance().stream_decoder(CHAT, PARAMS)
        assert _decode(decoder, _cut(exchange.body.replace(b"\n", newline), cuts)) == expected
        assert decoder.finished

    check()


def test_a_chat_stream_becomes_canonical(recorded: Callable[[str], Any]) -> None:
    """Words, then a final part with the counts that came after the reason, in Ollama's keys."""
    parts = _chat(recorded("llamacpp/chat_stream").body)
    assert _texts(parts) == ["L", "'", "É", "to", "ile", ",", ""]
    expected = recorded("ollama/chat_stream").parts
    assert list(parts[0]) == list(expected[0])
    assert [key for key in expected[-1] if key in parts[-1]] == list(parts[-1])
    assert {key: parts[-1][key] for key in ("model", "created_at", "done", "done_reason")} == {
        "model": "mine",
        "created_at": STAMP,
        "done": True,
        "done_reason": "length",
    }
    assert (parts[-1]["prompt_eval_count"], parts[-1]["eval_count"]) == (37, 6)
    assert parts[-1]["eval_duration"] == 32_537_000


def test_a_completion_stream_becomes_canonical(recorded: Callable[[str], Any]) -> None:
    """The same for a raw prompt."""
    decoder = _instance().stream_decoder(GENERATE, PARAMS)
    parts = _decode(decoder, [recorded("llamacpp/completions_stream").body])
    assert [item["response"] for item in parts] == ["1", "1", ",", " so", " the", ""]
    assert (parts[-1]["done_reason"], parts[-1]["eval_count"]) == ("length", 5)


def test_the_pieces_of_a_tool_call_become_one_part(recorded: Callable[[str], Any]) -> None:
    """A call comes whole, before the final part, as Ollama sends it."""
    call, last = _chat(recorded("llamacpp/chat_tool_call_stream").body)
    expected = recorded("ollama/chat_tool_call_stream").parts[0]
    assert list(call) == list(expected)
    assert call["message"]["tool_calls"][0]["function"] == expected["message"]["tool_calls"][0]["function"]
    assert (last["done_reason"], last["eval_count"]) == ("stop", 31)


def test_half_a_tool_call_is_left_out(recorded: Callable[[str], Any]) -> None:
    """A stream that grew too long inside a call says `length`, and has no call."""
    (last,) = _chat(recorded("llamacpp/chat_tool_call_cut_stream").body)
    assert (last["done_reason"], last["message"]) == ("length", {"role": "assistant", "content": ""})


def test_calls_may_come_interleaved() -> None:
    """Pieces are put together by index, and the calls come in its order; a missing index is the place in the list."""
    one = {"index": 1, "id": "b", "function": {"name": "g", "arguments": "{"}}
    two = {"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}}
    rest = {"index": 1, "function": {"arguments": "}"}}
    parts = _chat(_chunk({"tool_calls": [one]}), _chunk({"tool_calls": [two, rest]}), _chunk({}, "tool_calls"), DONE)
    assert parts[0]["message"]["tool_calls"] == [
        {"id": "a", "function": {"index": 0, "name": "f", "arguments": {}}},
        {"id": "b", "function": {"index": 1, "name": "g", "arguments": {}}},
    ]
    two = {"function": {"name": "f"}}
    parts = _chat(_chunk({"tool_calls": [two, two]}), DONE)
    assert [call["function"]["index"] for call in parts[0]["message"]["tool_calls"]] == [0, 1]


def test_an_empty_reason_is_none() -> None:
    """Servers that write one into every chunk have not ended: a call goes on, and a stream may still be cut off."""
    pieces = [{"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": text}}]} for text in ('{"a":', "1}")]
    parts = _chat(*(_chunk(piece, "") for piece in pieces), _chunk({}, "tool_calls"), DONE)
    assert [call["function"]["arguments"] for call in parts[0]["message"]["tool_calls"]] == [{"a": 1}]
    decoder = _instance().stream_decoder(CHAT, PARAMS)
    _decode(decoder, [_chunk({"content": "half"}, "")])
    assert not decoder.finished


def test_a_call_with_broken_arguments_raises() -> None:
    """The words before it are kept; the answer is not finished cleanly."""
    call = {"index": 0, "function": {"name": "f", "arguments": "{"}}
    decoder = _instance().stream_decoder(CHAT, PARAMS)
    with pytest.raises(UpstreamError, match="not a JSON object") as caught:
        decoder.feed(_chunk({"content": "a"}) + _chunk({"tool_calls": [call]}, "tool_calls"))
    assert _texts(caught.value.parts) == ["a"]


def test_thoughts_come_before_words(recorded: Callable[[str], Any]) -> None:
    """llama.cpp's `reasoning_content` and Ollama's own `reasoning` are both thinking."""
    parts = _chat(recorded("llamacpp/chat_reasoning_stream").body)
    assert "".join(item["message"].get("thinking", "") for item in parts) == "Spain is a country.\n"
    assert "".join(_texts(parts)) == "Catalonia."
    parts = _chat(recorded("ollama/v1_chat_reasoning_stream").body)
    assert parts[0]["message"] == {"role": "assistant", "content": "", "thinking": "The"}


def test_logprobs_stay_with_their_token(recorded: Callable[[str], Any]) -> None:
    """Each part has those of its own token."""
    parts = _chat(recorded("llamacpp/chat_logprobs_stream").body)
    assert [[item["token"] for item in found.get("logprobs", [])] for found in parts] == [["L"], ["'"], []]


def test_durations_are_measured() -> None:
    """Where the server says nothing: reading lasts until the first output, writing until the end."""
    ticks = count(100)
    instance = OpenAIInstance(wall=lambda: NOW, monotonic=lambda: float(next(ticks)))
    decoder = instance.stream_decoder(CHAT, PARAMS)
    decoder.feed(_chunk({"role": "assistant", "content": None}))
    decoder.feed(_chunk({"content": "a"}))
    decoder.feed(_chunk({"content": "b"}, "stop"))
    (last,) = decoder.feed(DONE)
    assert {key: value for key, value in last.items() if key.endswith("duration")} == {
        "total_duration": 2_000_000_000,
        "prompt_eval_duration": 1_000_000_000,
        "eval_duration": 1_000_000_000,
    }


def test_the_final_part_waits_for_the_counts() -> None:
    """It comes with `[DONE]`, which ends the stream; what follows is not read."""
    decoder = _instance().stream_decoder(CHAT, PARAMS)
    assert decoder.feed(_chunk({}, "stop")) == []
    assert decoder.finished
    assert decoder.feed(_chunk(usage={"prompt_tokens": 3, "completion_tokens": 4})) == []
    (last,) = decoder.feed(DONE + b"data: more\n\n")
    assert (last["done_reason"], last["prompt_eval_count"], last["eval_count"]) == ("stop", 3, 4)
    assert decoder.feed(b"data: more\n\n<html>") == []
    assert decoder.close() == []


def test_a_server_may_leave_out_done() -> None:
    """A stream that said why it ended is complete, and its final part comes on close."""
    decoder = _instance().stream_decoder(CHAT, PARAMS)
    assert _texts(decoder.feed(_chunk({"content": "a"}, "stop"))) == ["a"]
    assert decoder.finished
    (last,) = decoder.close()
    assert last["done"] is True
    assert decoder.close() == []


@pytest.mark.parametrize("tail", [b"data: [DONE]", b"data: [DONE]\n", b"data: [DONE]\r\n"])
def test_the_last_event_may_lack_its_end(tail: bytes) -> None:
    """Some servers leave out the last empty line."""
    decoder = _instance().stream_decoder(CHAT, PARAMS)
    parts = _decode(decoder, [_chunk({"content": "a"}), tail])
    assert [item["done"] for item in parts] == [False, True]
    assert decoder.finished


@pytest.mark.parametrize(
    "tail", [b"", b"data", b'data: {"choices":[{"del', b"data: [DO", b"<html", b": keep-alive\n\n"]
)
def test_a_stream_without_a_reason_is_incomplete(tail: bytes) -> None:
    """The words are kept; without reason or `[DONE]` there is no final part, whatever was cut off."""
    decoder = _instance().stream_decoder(CHAT, PARAMS)
    parts = _decode(decoder, [_chunk({"content": "a"}) + tail])
    assert _texts(parts) == ["a"]
    assert not parts[-1]["done"]
    assert not decoder.finished


@pytest.mark.parametrize(
    "data",
    [
        b'data: {"error":{"message":"runner died","code":500}}\n\n',
        b'data: {"error":"runner died"}\n\n',
        b'data: {"object":"error","message":"runner died"}\n\n',
        b'error: {"code":500,"message":"runner died"}\n\n',
        b'event: error\ndata: {"error":{"message":"runner died"}}\n\n',
    ],
)
def test_an_error_inside_a_stream_raises_after_the_parts_before_it(data: bytes) -> None:
    """Every known form of error is the instance's own report, and the words before it are kept."""
    decoder = _instance().stream_decoder(CHAT, PARAMS)
    with pytest.raises(UpstreamError, match="runner died") as caught:
        decoder.feed(_chunk({"content": "a"}) + data + _chunk({"content": "b"}))
    assert caught.value.reported
    assert _texts(caught.value.parts) == ["a"]
    assert not decoder.finished


@pytest.mark.parametrize("data", [b'{"error":"runner died"}', b'data: {"error":"runner died"}'])
def test_an_error_at_the_very_end_is_reported(data: bytes) -> None:
    """Even without a newline, and as a bare JSON document."""
    decoder = _instance().stream_decoder(CHAT, PARAMS)
    decoder.feed(data)
    with pytest.raises(UpstreamError, match="runner died") as caught:
        decoder.close()
    assert caught.value.reported


@pytest.mark.parametrize(
    "data",
    [
        b"<html>\n",
        b"data: <html>\n\n",
        b"data: {}\n\n",
        b'data: {"choices":7}\n\n',
        b'data: {"choices":[{"delta":{"content":7}}]}\n\n',
        b"data: [1]\n\n",
        b"data: \xff\n\n",
        b'{"model":"m","message":{"content":"x"},"done":false}\n\n',
    ],
)
def test_garbage_in_a_stream_raises(data: bytes) -> None:
    """What is no chunk is no stream of an OpenAI server, and never ends an answer."""
    decoder = _instance().stream_decoder(CHAT, PARAMS)
    with pytest.raises(UpstreamError) as caught:
        decoder.feed(data)
    assert not caught.value.reported
    assert not decoder.finished


@given(data=st.binary(max_size=300), cuts=CUTS, prefix=st.sampled_from([b"", b"data: ", b"data: {", b'{"done":']))
def test_no_bytes_raise_anything_else(data: bytes, cuts: list[int], prefix: bytes) -> None:
    """Any bytes give parts or an UpstreamError."""
    for instance in (_instance(), OllamaInstance()):
        decoder = instance.stream_decoder(CHAT, PARAMS)
        with suppress(UpstreamError):
            _decode(decoder, _cut(prefix + data + b"\n\n", cuts))


def test_ollamas_own_v1_is_understood(recorded: Callable[[str], Any]) -> None:
    """Ollama's `/v1` is an OpenAI server too: a call whole in one delta, usage in a chunk of its own."""
    call, last = _chat(recorded("ollama/v1_chat_tool_call_stream").body)
    assert call["message"]["tool_calls"][0]["function"]["arguments"] == {"city": "Paris"}
    assert last["done_reason"] == "stop"
    assert _chat(recorded("ollama/v1_chat_stream_usage").body)[-1]["eval_count"] == 5


TEXT = st.text(max_size=8)
LOGPROBS = st.lists(
    st.builds(lambda token: {"token": token, "logprob": -1.5, "bytes": list(token.encode())}, TEXT), max_size=2
)
CALL = st.builds(
    lambda name, arguments: (name, arguments), st.text(min_size=1, max_size=5), st.dictionaries(TEXT, TEXT, max_size=2)
)
REASONS = st.sampled_from(["stop", "length", "content_filter"])
COUNTS = st.fixed_dictionaries({"prompt_eval_count": st.integers(1, 99), "eval_count": st.integers(1, 99)})


@st.composite
def chats(draw: st.DrawFn) -> list[Any]:
    """The canonical parts of one chat: thoughts and words, then calls in one part, then the final part."""
    said = draw(st.lists(st.tuples(TEXT, TEXT, LOGPROBS).filter(any), max_size=5))
    parts = [part(CHAT, "mine", STAMP, text=text, thinking=thinking, logprobs=found) for text, thinking, found in said]
    calls = [
        {"id": f"id-{index}", "function": {"index": index, "name": name, "arguments": arguments}}
        for index, (name, arguments) in enumerate(draw(st.lists(CALL, max_size=3)))
    ]
    if calls:
        parts.append(part(CHAT, "mine", STAMP, tool_calls=calls))
    return [*parts, final(CHAT, "mine", STAMP, reason=draw(REASONS), counts=draw(COUNTS))]


@given(parts=chats(), cuts=CUTS)
def test_a_chat_survives_the_way_to_openai_and_back(parts: list[Any], cuts: list[int]) -> None:
    """What is written for OpenAI's callers and read as an OpenAI server's answer is the same conversation."""
    client = OpenAIClient(wall=lambda: NOW)
    encoder = client.stream_encoder(
        Parsed(client.endpoints["/v1/chat/completions"], CHAT, PARAMS, stream=True, include_usage=True)
    )
    data = b"".join(map(encoder.part, parts)) + encoder.finish()
    decoder = _instance().stream_decoder(CHAT, PARAMS)
    assert _decode(decoder, _cut(data, cuts)) == parts
    assert decoder.finished


@given(parts=chats())
def test_a_plain_chat_survives_the_way_to_openai_and_back(parts: list[Any]) -> None:
    """The same for a plain answer."""
    counts = {key: value for key, value in parts[-1].items() if key.endswith("_count")}
    calls = [call for item in parts for call in item["message"].get("tool_calls", [])]
    logprobs = [found for item in parts for found in item.get("logprobs", [])]
    answer = final(
        CHAT,
        "mine",
        STAMP,
        reason=parts[-1]["done_reason"],
        text="".join(_texts(parts)),
        thinking="".join(item["message"].get("thinking", "") for item in parts),
        tool_calls=calls,
        logprobs=logprobs,
        counts=counts,
    )
    client = OpenAIClient(wall=lambda: NOW)
    parsed = Parsed(client.endpoints["/v1/chat/completions"], CHAT, PARAMS, stream=False)
    assert _instance().decode_answer(CHAT, PARAMS, client.answer(parsed, answer)) == answer
