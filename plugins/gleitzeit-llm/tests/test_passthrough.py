"""Bytes that pass: nothing is changed, nothing is cut in mid-line, and the end and errors are noticed."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_llm.passthrough import PassThrough, check_object, check_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Recorded = Callable[[str], Any]

pytestmark = pytest.mark.fidelity

DONE_LINE = b'{"model":"m","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop"}\n'
PART_LINE = b'{"model":"m","message":{"role":"assistant","content":"hi"},"done":false}\n'
DONE_EVENT = b"data: [DONE]\n\n"
PART_EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":null}]}\n\n'
STOP_EVENT = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'

Outcome = tuple[bytes, bool, FailureKind | None, str]


def passed(dialect: str, chunks: Sequence[bytes], **options: int) -> tuple[list[bytes], Outcome]:
    """The pieces that come out, and: all of them together, whether the end was seen, how it failed and why."""
    watched, pieces = PassThrough(dialect, **options), []
    kind, why = None, ""
    try:
        for chunk in chunks:
            pieces += iter_until_failure(watched.feed(chunk), pieces)
        pieces += iter_until_failure(watched.close(), pieces)
    except InstanceFailure as failure:
        kind, why = failure.kind, failure.message
    return pieces, (b"".join(pieces), watched.finished, kind, why)


def iter_until_failure(source: Any, pieces: list[bytes]) -> list[bytes]:  # noqa: ANN401 - a generator
    """What comes out of it; in `pieces` already when it fails in between."""
    got: list[bytes] = []
    try:
        got.extend(source)
    except InstanceFailure:
        pieces += got
        raise
    return got


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    """`data` in pieces."""
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[begin:end] for begin, end in pairwise(ends)]


def cuts_of(data: bytes, places: Sequence[int]) -> list[list[bytes]]:
    """`data` whole, cut at these places, and byte by byte."""
    return [[data], cut(data, places), cut(data, range(len(data)))]


places = st.lists(st.integers(0, 10_000), max_size=30)
# Texts that look like what is searched for.
texts = st.text() | st.sampled_from(
    [
        '"done":true',
        '{"done":true}',
        '{"error":"x"}',
        "data: [DONE]",
        "\n\ndata: [DONE]\n\n",
        '"finish_reason":"stop"',
        "error: x",
        "done",
        "error",
        "\r\n",
        "\u2028",
    ]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-100, 100) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["done", "error", "a"]) | texts, inner),
    max_leaves=6,
)


def line(value: object, *, ascii_: bool, spaces: bool) -> bytes:
    """JSON in one line, in one of the ways there are to write it."""
    return json.dumps(value, ensure_ascii=ascii_, separators=None if spaces else (",", ":")).encode("utf-8", "replace")


@st.composite
def ollama_parts(draw: st.DrawFn) -> bytes:
    """Lines of a stream that is not yet at its end."""
    ends = draw(st.sampled_from([b"\n", b"\r\n", b" \n"]))
    lines = []
    for text, arguments in draw(st.lists(st.tuples(texts, values), max_size=5)):
        call = {"function": {"name": text, "arguments": arguments}}
        part = {"model": "m", "message": {"content": text, "tool_calls": [call]}, "done": False}
        lines.append(line(part, ascii_=draw(st.booleans()), spaces=draw(st.booleans())) + ends)
    return b"".join(lines)


@st.composite
def openai_parts(draw: st.DrawFn) -> bytes:
    """Events of a stream that is not yet at its end."""
    end = draw(st.sampled_from([b"\n", b"\r\n"]))
    heads = [b"", b": ping" + end, b": ping" + end + end, b"event: message" + end, b"id: 1" + end]
    events = []
    for text, arguments in draw(st.lists(st.tuples(texts, values), max_size=5)):
        call = {"index": 0, "function": {"name": text, "arguments": json.dumps(arguments)}}
        choice = {"index": 0, "delta": {"content": text, "tool_calls": [call]}, "finish_reason": None}
        data = line({"choices": [choice]}, ascii_=draw(st.booleans()), spaces=draw(st.booleans()))
        head = draw(st.sampled_from(heads))
        events.append(head + b"data:" + draw(st.sampled_from([b"", b" "])) + data + end + end)
    return b"".join(events)


PARTS = {"ollama": ollama_parts(), "openai": openai_parts()}
FINALS = {
    "ollama": [
        DONE_LINE,
        DONE_LINE.replace(b"\n", b"\r\n"),
        DONE_LINE[:-1],
        b'{ "done" : true }\n',
        b'{"done":\ttrue}',
        DONE_LINE + b"\n",
    ],
    "openai": [
        DONE_EVENT,
        b"data:[DONE]\r\n\r\n",
        b"data: [DONE]\r\r",
        b"data: [DONE]\n",
        b"data: [DONE]",
        STOP_EVENT + DONE_EVENT,
        STOP_EVENT,
        STOP_EVENT[:-2],
        b": bye\ndata: [DONE]\n\n: after\n\n",
    ],
}
ERRORS = {
    "ollama": [
        b'{"error":"out of memory"}\n',
        b'{"error":"out of memory"}',
        b' { "error" : "out of memory" }\r\n',
        b'{"status":500,"error":{"message":"out of memory"}}\n',
    ],
    "openai": [
        b'data: {"error":{"message":"out of memory","code":500}}\n\n',
        b'data:{"error":"out of memory"}\r\n\r\n',
        b'event: error\ndata: {"error":{"message":"out of memory"}}\n\n',
        b'data: {"object":"error","message":"out of memory","code":500}\n\n',
        b'error: {"message":"out of memory"}\n\n',
        b'{"error":{"message":"out of memory"}}',
        b'data: {"error":{"message":"out of memory"}}',
    ],
}
NOISE = [
    *(
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b"data:",
        b"data: ",
        b"error:",
        b":",
        b"[DONE]",
        b'{"done":true}',
        b'{"error":"x"}',
    ),
    *(b'"done":true', b'"error"', b'"finish_reason":"stop"', b"{", b"}", b" ", STOP_EVENT, DONE_EVENT, DONE_LINE),
]
BOUNDARY = {"ollama": re.compile(rb"\n\Z"), "openai": re.compile(rb"(?:\r\n|\n|\r)(?:\r\n|\n|\r)\Z")}

dialects = pytest.mark.parametrize("dialect", ["ollama", "openai"])


@dialects
@given(data=st.data())
def test_a_whole_stream_passes_unchanged(dialect: str, data: st.DataObject) -> None:
    """However it is cut on its way: all bytes come out, in whole lines or events, and the end is seen."""
    stream = data.draw(PARTS[dialect]) + data.draw(st.sampled_from(FINALS[dialect]))
    for chunks in cuts_of(stream, data.draw(places)):
        pieces, outcome = passed(dialect, chunks)
        assert outcome == (stream, True, None, "")
        assert all(pieces)
        assert all(BOUNDARY[dialect].search(piece) for piece in pieces[:-1])


@dialects
@given(data=st.data())
def test_an_error_is_noticed(dialect: str, data: st.DataObject) -> None:
    """However it is cut: what came before the error comes out, and then it is raised, in the instance's words."""
    before, after = data.draw(PARTS[dialect]), data.draw(st.sampled_from([b"", *FINALS[dialect]]))
    error = data.draw(st.sampled_from(ERRORS[dialect]))
    if not BOUNDARY[dialect].search(error):
        after = b""
    for chunks in cuts_of(before + error + after, data.draw(places)):
        outcome = passed(dialect, chunks)[1]
        assert outcome == (before, False, FailureKind.SERVER_ERROR, "out of memory")


@dialects
@given(data=st.data())
def test_a_stream_without_its_end_is_lost(dialect: str, data: st.DataObject) -> None:
    """However it is cut: whole lines and events come out, the rest does not, and the answer is incomplete."""
    before = data.draw(PARTS[dialect])
    rest = {"ollama": PART_LINE, "openai": PART_EVENT}[dialect][: data.draw(st.integers(0, 60))]
    for chunks in cuts_of(before + rest, data.draw(places)):
        pieces, (out, finished, kind, why) = passed(dialect, chunks)
        assert (out, finished, kind) == (before, False, FailureKind.LOST)
        assert "incomplete" in why
        assert all(BOUNDARY[dialect].search(piece) for piece in pieces)


@dialects
@given(tokens=st.lists(st.sampled_from(NOISE) | st.binary(max_size=3), max_size=30), cuts=places)
def test_noise_passes_too(dialect: str, tokens: list[bytes], cuts: list[int]) -> None:
    """Whatever comes, nothing is lost or made up before the end, and how it was cut does not matter."""
    stream = b"".join(tokens)
    outcome = passed(dialect, [stream])[1]
    assert stream.startswith(outcome[0])
    for chunks in cuts_of(stream, cuts):
        assert passed(dialect, chunks)[1] == outcome


@pytest.mark.parametrize("end", [b"\r\r", b"\n\r\n", b"\r\n\n", b"\n\n", b"\r\n\r\n"])
def test_every_way_to_end_an_event(end: bytes) -> None:
    """An event is given out when the next one begins, at the latest."""
    event = PART_EVENT[:-2] + end
    watched = PassThrough("openai")
    pieces = [piece for byte in event + b"d" for piece in watched.feed(bytes([byte]))]
    assert pieces == [event]


# -- what is not the end -------------------------------------------------------------------------------------------

NOT_THE_END = {
    "an argument": b'{"message":{"tool_calls":[{"function":{"arguments":{"done":true}}}]},"done":false}\n',
    "a string": b'{"message":{"content":"{\\"done\\":true}"},"done":false}\n',
    "the text of a string": b'{"message":{"content":"\\"done\\":true"},"done":false}\n',
    "a number": b'{"done":1}\n',
    "another word": b'{"done":"true"}\n',
    "a list": b'[{"done":true}]\n',
    "half a line": b'{"done":true,"x":\n',
    "an error as an argument": b'{"message":{"tool_calls":[{"function":{"arguments":{"error":"x"}}}]},"done":false}\n',
    "no error": b'{"error":null,"done":false}\n',
}
NOT_THE_END_OF_EVENTS = {
    "a string": b'data: {"choices":[{"index":0,"delta":{"content":"data: [DONE]"},"finish_reason":null}]}\n\n',
    "a line in a string": b'data: {"choices":[{"index":0,"delta":{"content":"\\n\\ndata: [DONE]\\n\\n"}}]}\n\n',
    "an empty reason": b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":""}]}\n\n',
    "a comment": b": data: [DONE]\n\n",
    "another field": b"id: [DONE]\n\n",
    "an error as a string": b'data: {"choices":[{"index":0,"delta":{"content":"error"}}]}\n\n',
    "no error": b'data: {"error":null,"choices":[]}\n\n',
    "no JSON": b'data: {"error" is what happened}\n\n',
    "no event": b'<p class="error">\n\n',
}


@pytest.mark.parametrize("sent", NOT_THE_END.values(), ids=NOT_THE_END)
def test_what_only_looks_like_the_last_line(sent: bytes) -> None:
    """Only a line that itself says so is the last."""
    assert passed("ollama", [PART_LINE + sent])[1][:3] == (PART_LINE + sent, False, FailureKind.LOST)
    assert passed("ollama", [sent + DONE_LINE])[1] == (sent + DONE_LINE, True, None, "")


@pytest.mark.parametrize("sent", NOT_THE_END_OF_EVENTS.values(), ids=NOT_THE_END_OF_EVENTS)
def test_what_only_looks_like_the_last_event(sent: bytes) -> None:
    """Only ``[DONE]``, or a reason why the answer ended, is the end."""
    assert passed("openai", [PART_EVENT + sent])[1][:3] == (PART_EVENT + sent, False, FailureKind.LOST)
    assert passed("openai", [sent + DONE_EVENT])[1] == (sent + DONE_EVENT, True, None, "")


@pytest.mark.parametrize(
    ("dialect", "stream"),
    [
        ("ollama", DONE_LINE + b'{"error":"too late"}\n'),
        ("openai", DONE_EVENT + b'data: {"error":{"message":"too late"}}\n\n'),
    ],
)
def test_after_the_end_nothing_matters(dialect: str, stream: bytes) -> None:
    """The caller has its answer."""
    for chunks in ([stream], cut(stream, range(0, len(stream), 7))):
        assert passed(dialect, chunks)[1] == (stream, True, None, "")


def test_an_error_without_words() -> None:
    """It is an error all the same."""
    assert passed("ollama", [b'{"error":{}}\n'])[1][2:] == (
        FailureKind.SERVER_ERROR,
        "the instance reported an error without a text",
    )


# -- cost and limits -----------------------------------------------------------------------------------------------


@dialects
def test_lines_are_not_parsed(dialect: str) -> None:
    """A line that has no sign of an end or an error passes as it is, even one that no parser would take."""
    stream = {"ollama": b"{not JSON}\n" + DONE_LINE, "openai": b"data: {not JSON}\n\n" + DONE_EVENT}[dialect]
    assert passed(dialect, [stream])[1] == (stream, True, None, "")


@dialects
def test_a_line_without_an_end_is_given_up(dialect: str) -> None:
    """Memory is bounded; what was whole before still comes out."""
    before = {"ollama": PART_LINE, "openai": PART_EVENT}[dialect]
    _, (out, _, kind, why) = passed(dialect, [before + b"x" * 60, b"x" * 60], max_bytes=100)
    assert (out, kind) == (before, FailureKind.SERVER_ERROR)
    assert why == "the instance sent a line longer than 100 bytes"


@dialects
def test_a_long_line_in_small_pieces(dialect: str) -> None:
    """A megabyte in one line, a few bytes at a time, costs no more than its length."""
    line_ = b'{"message":{"content":"' + b"a" * 1_000_000 + b'"},"done":false}'
    stream = line_ + b"\n" + DONE_LINE if dialect == "ollama" else b"data: " + line_ + b"\n\n" + DONE_EVENT
    assert passed(dialect, cut(stream, range(0, len(stream), 20)))[1] == (stream, True, None, "")


# -- recordings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dialect", "name"),
    [
        ("ollama", "ollama/chat_stream"),
        ("ollama", "ollama/chat_thinking_stream"),
        ("ollama", "ollama/chat_tool_call_stream"),
        ("ollama", "ollama/generate_stream"),
        ("openai", "ollama/v1_chat_stream"),
        ("openai", "ollama/v1_chat_stream_usage"),
        ("openai", "ollama/v1_chat_tool_call_stream"),
        ("openai", "ollama/v1_completions_stream"),
        ("openai", "llamacpp/chat_stream"),
        ("openai", "llamacpp/chat_logprobs_stream"),
        ("openai", "llamacpp/chat_tool_call_cut_stream"),
        ("openai", "llamacpp/completions_stream"),
    ],
)
def test_real_streams_pass(recorded: Recorded, dialect: str, name: str) -> None:
    """What real servers sent passes whole, is seen to end, and is incomplete without its last line or event."""
    stream = recorded(name).body
    assert passed(dialect, cut(stream, range(0, len(stream), 11)))[1] == (stream, True, None, "")
    marker = b'"done":true' if dialect == "ollama" else b'"finish_reason":"'
    assert passed(dialect, [stream[: stream.index(marker)]])[1][2] is FailureKind.LOST


def test_a_real_error_in_a_stream(recorded: Recorded) -> None:
    """A pull that fails answers 200 and then says so."""
    _, (_, _, kind, why) = passed("ollama", [recorded("ollama/pull_unreachable_stream").body])
    assert kind is FailureKind.SERVER_ERROR
    assert why.startswith("pull model manifest")


# -- whole answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b'{"error":"no such call"}', b' {\n "error" : {"message":"no such call"} }\n'])
def test_an_error_with_status_200(body: bytes) -> None:
    """Some servers answer so what they do not know."""
    with pytest.raises(InstanceFailure, match=r"^no such call$") as caught:
        check_whole(body)
    assert caught.value.kind is FailureKind.SERVER_ERROR


@pytest.mark.parametrize("body", [b"", b"{}", b'{"error":null}', b'{"error"', b'{"id":"x","error":"y"}', DONE_LINE])
def test_whole_answers_that_are_no_errors(body: bytes) -> None:
    """An answer that does not begin with an error passes."""
    check_whole(body)


@pytest.mark.parametrize("body", [b"{}", b' \n{"a":[{"b":"}"}]}\r\n', DONE_LINE, b'{"error":"y"}'])
def test_whole_objects(body: bytes) -> None:
    """A JSON object is an answer, whatever is in it."""
    check_object(body)


@pytest.mark.parametrize(
    "body",
    [b"", b" ", b'{"error"', DONE_LINE[:-2], b"[]", b"3", b"null", b"{}{}", b"<html>", b"\x00\xff", b"[" * 100_000],
)
def test_what_is_no_whole_object(body: bytes) -> None:
    """What is cut off, or is something else, does not pass for an answer."""
    with pytest.raises(InstanceFailure, match=r"no whole JSON|no JSON object") as caught:
        check_object(body)
    assert caught.value.kind is FailureKind.SERVER_ERROR
