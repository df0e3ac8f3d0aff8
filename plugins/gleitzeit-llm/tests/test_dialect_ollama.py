"""The dialect `ollama`: what its callers get, and what its instances are sent and answer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_llm.dialects import DIALECTS
from gleitzeit_llm.dialects.lines import MAX_LINE_BYTES
from gleitzeit_llm.protocol import CHAT, EMBED, GENERATE, UpstreamError

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.fidelity

CLIENT = DIALECTS["ollama"].client
INSTANCE = DIALECTS["ollama"].instance
PARAMS = {"model": "mine"}


def _parse(path: str, **body: Any) -> Any:  # noqa: ANN401 - compared as a whole
    return CLIENT.parse(CLIENT.endpoints[path], json.dumps(body).encode())


def test_a_request_is_the_protocols_own(recorded: Callable[[str], Any]) -> None:
    """The canonical parameters are what the caller sent, and a stream is what the caller asked for."""
    for name, path, stream in [("chat", "/api/chat", False), ("generate_stream", "/api/generate", True)]:
        exchange = recorded(f"ollama/{name}")
        parsed = CLIENT.parse(CLIENT.endpoints[path], exchange.sent)
        assert (parsed.params, parsed.stream) == (exchange.request, stream)


def test_embeddings_never_stream() -> None:
    """`stream` means nothing there, as in Ollama."""
    assert not _parse("/api/embed", model="m", input="x", stream=True).stream


@pytest.mark.parametrize("name", ["chat", "generate", "embed_many", "chat_tool_call", "chat_logprobs", "chat_load"])
def test_plain_answers_are_as_recorded(recorded: Callable[[str], Any], name: str) -> None:
    """A canonical answer is written with the recorded keys in their order, compact, and of the recorded type."""
    exchange = recorded(f"ollama/{name}")
    body = CLIENT.answer(_parse("/api/chat", model="m"), exchange.answer)
    assert body == json.dumps(exchange.answer, separators=(",", ":"), ensure_ascii=False).encode()
    assert exchange.headers["Content-Type"] == CLIENT.plain_type


@pytest.mark.parametrize("name", ["chat_stream", "generate_stream", "chat_tool_call_stream", "chat_thinking_stream"])
def test_streams_are_as_recorded(recorded: Callable[[str], Any], name: str) -> None:
    """Canonical parts are written as the recorded lines, byte for byte, and nothing follows them."""
    exchange = recorded(f"ollama/{name}")
    encoder = CLIENT.stream_encoder(_parse("/api/chat", model="m"))
    assert b"".join(map(encoder.part, exchange.parts)) + encoder.finish() == exchange.body
    assert exchange.headers["Content-Type"] == CLIENT.stream_type


def test_an_error_inside_a_stream_is_a_line(recorded: Callable[[str], Any]) -> None:
    """It has the recorded form."""
    line = recorded("ollama/pull_unreachable_stream").lines[1]
    encoder = CLIENT.stream_encoder(_parse("/api/chat", model="m"))
    assert encoder.error(json.loads(line)["error"], "lost") == line.encode() + b"\n"


@pytest.mark.parametrize("name", ["chat_unknown_model", "chat_queue_full", "chat_tools_unsupported"])
def test_error_bodies_are_as_recorded(recorded: Callable[[str], Any], name: str) -> None:
    """Error answers have the recorded bytes."""
    exchange = recorded(f"ollama/{name}")
    body = CLIENT.error_body(exchange.status, exchange.answer["error"], "some_code", "model")
    assert json.loads(body) == exchange.answer
    assert exchange.headers["Content-Type"] == CLIENT.plain_type


def test_the_old_embeddings_take_a_prompt_and_answer_one_vector(recorded: Callable[[str], Any]) -> None:
    """`/api/embeddings` is `llm/embed` with other names."""
    exchange = recorded("ollama/embeddings_old")
    parsed = CLIENT.parse(CLIENT.endpoints["/api/embeddings"], exchange.sent)
    assert (parsed.method, parsed.params) == (EMBED, {"model": "smollm2", "input": "hello"})
    assert CLIENT.answer(parsed, {"model": "m", "embeddings": [[0.5]]}) == b'{"embedding":[0.5]}'
    assert CLIENT.answer(parsed, {"model": "m", "embeddings": []}) == b'{"embedding":[]}'


@pytest.mark.parametrize(("method", "path"), [(CHAT, "/api/chat"), (GENERATE, "/api/generate"), (EMBED, "/api/embed")])
def test_an_instance_is_sent_what_the_caller_said(method: str, path: str) -> None:
    """Every field goes along, unknown ones included; only `stream` is ours."""
    params = {"model": "m", "stream": True, "future": {"a": 1}, "options": {"seed": 1}}
    upstream = INSTANCE.encode(method, params)
    expected = {"model": "m", "future": {"a": 1}, "options": {"seed": 1}}
    assert upstream.path == path
    assert upstream.payload == (expected if method == EMBED else {**expected, "stream": False})
    assert upstream.body() == json.dumps(upstream.payload, separators=(",", ":")).encode()
    assert params["stream"] is True


def test_a_stream_is_asked_for() -> None:
    """An instance is told to stream when the caller gets a stream."""
    assert INSTANCE.encode(CHAT, {"model": "m"}, stream=True).payload["stream"] is True


def test_a_request_without_a_model_is_refused() -> None:
    """Before it is sent anywhere."""
    with pytest.raises(InvalidRequest, match="model is required"):
        INSTANCE.encode(CHAT, {"messages": []})
    with pytest.raises(InvalidRequest, match="model is required"):
        INSTANCE.stream_decoder(CHAT, {})


@pytest.mark.parametrize(("name", "method"), [("chat", CHAT), ("generate_raw", GENERATE), ("embed_many", EMBED)])
def test_an_instances_answer_is_canonical(recorded: Callable[[str], Any], name: str, method: str) -> None:
    """It is passed on whole, under the name the caller used."""
    exchange = recorded(f"ollama/{name}")
    answer = INSTANCE.decode_answer(method, PARAMS, exchange.body, elapsed_s=1.0)
    assert answer == {**exchange.answer, "model": "mine"}
    assert list(answer) == list(exchange.answer)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"<html>", "no JSON object but '<html>'"),
        (b"", "no JSON object but ''"),
        (b"[1]", "no JSON object"),
        (b'{"a":', "no JSON object"),
        (b"[" * 100_000, "no JSON object"),
        (b'{"done":true}', "no answer to llm/chat"),
        (b'{"message":{"role":"assistant","content":"x"},"done":false}', "no answer to llm/chat"),
        (b'{"status":"success"}', "no answer to llm/chat"),
    ],
)
def test_an_answer_that_makes_no_sense_raises(body: bytes, text: str) -> None:
    """Garbage, another server's answer and half an answer are told from an answer."""
    with pytest.raises(UpstreamError, match=text) as caught:
        INSTANCE.decode_answer(CHAT, PARAMS, body)
    assert not caught.value.reported


@pytest.mark.parametrize(
    ("body", "text"),
    [(b'{"error":"out of memory"}', "out of memory"), (b'{"error":{}}', "an error without a text")],
)
def test_an_error_with_status_200_is_reported(body: bytes, text: str) -> None:
    """Ollama puts errors into answers with status 200."""
    with pytest.raises(UpstreamError, match=text) as caught:
        INSTANCE.decode_answer(CHAT, PARAMS, body)
    assert caught.value.reported


@pytest.mark.parametrize(
    ("name", "method"), [("chat_stream", CHAT), ("generate_stream", GENERATE), ("chat_tool_call_stream", CHAT)]
)
def test_an_instances_stream_is_canonical(recorded: Callable[[str], Any], name: str, method: str) -> None:
    """Each line is a part, and the last one finishes the answer."""
    exchange = recorded(f"ollama/{name}")
    decoder = INSTANCE.stream_decoder(method, PARAMS)
    assert decoder.feed(exchange.body) == [{**part, "model": "mine"} for part in exchange.parts]
    assert decoder.finished
    assert decoder.close() == []


def test_embeddings_do_not_stream() -> None:
    """Asking for it is the caller's mistake."""
    with pytest.raises(InvalidRequest, match="llm/embed does not stream"):
        INSTANCE.stream_decoder(EMBED, PARAMS)


def test_an_error_line_raises_after_the_parts_before_it() -> None:
    """The parts of the same bytes come with the error, which is the instance's own."""
    decoder = INSTANCE.stream_decoder(CHAT, PARAMS)
    with pytest.raises(UpstreamError, match="runner died") as caught:
        decoder.feed(b'{"model":"m","done":false}\n\n{"error":"runner died"}\n{"model":"m","done":true}\n')
    assert caught.value.reported
    assert caught.value.parts == ({"model": "mine", "done": False},)
    assert not decoder.finished


@pytest.mark.parametrize("line", [b"<html>", b"[]", b'{"status":"pulling"}', b'{"done":', b"\xff"])
def test_garbage_in_a_stream_raises(line: bytes) -> None:
    """A line that is no part is no stream of Ollama's."""
    decoder = INSTANCE.stream_decoder(CHAT, PARAMS)
    with pytest.raises(UpstreamError) as caught:
        decoder.feed(line + b"\n")
    assert not caught.value.reported
    assert not decoder.finished


def test_a_line_that_never_ends_raises() -> None:
    """The limit holds for instances."""
    decoder = INSTANCE.stream_decoder(CHAT, PARAMS)
    assert decoder.feed(b"x" * MAX_LINE_BYTES) == []
    with pytest.raises(UpstreamError, match=f"longer than {MAX_LINE_BYTES} bytes"):
        decoder.feed(b"x")


@pytest.mark.parametrize("tail", [b"", b'{"model":"m","mess', b"<htm"])
def test_a_stream_without_its_last_part_is_incomplete(tail: bytes) -> None:
    """An end without `done` is told apart, whether between lines or inside one."""
    decoder = INSTANCE.stream_decoder(CHAT, PARAMS)
    decoder.feed(b'{"model":"m","done":false}\n' + tail)
    assert decoder.close() == []
    assert not decoder.finished


def test_a_last_line_without_a_newline_counts() -> None:
    """A whole part at the end of the stream is one."""
    decoder = INSTANCE.stream_decoder(CHAT, PARAMS)
    assert decoder.feed(b'{"model":"m","done":true}') == []
    assert decoder.close() == [{"model": "mine", "done": True}]
    assert decoder.finished


def test_an_error_without_a_newline_counts() -> None:
    """An error at the very end is reported, not taken for an incomplete line."""
    decoder = INSTANCE.stream_decoder(CHAT, PARAMS)
    decoder.feed(b'{"error":"x"}')
    with pytest.raises(UpstreamError, match="x") as caught:
        decoder.close()
    assert caught.value.reported


def test_nothing_after_the_last_part_is_read() -> None:
    """What follows `done` is not the answer."""
    decoder = INSTANCE.stream_decoder(CHAT, PARAMS)
    decoder.feed(b'{"model":"m","done":true}\n<html>\n')
    assert decoder.feed(b"more\n") == []
    assert decoder.close() == []
    assert decoder.finished
