"""Bytes that pass, of all three kinds of stream: unknown fields and all, cut anywhere on their way, never in mid-line."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_core.requests import Usage
from gleitzeit_llm.passthrough import PassThrough, is_final
from gleitzeit_llm.usage import of_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

pytestmark = pytest.mark.fidelity

RESPONSES = "openai-responses"
USAGE = {"input_tokens": 11, "output_tokens": 5, "total_tokens": 16}
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
# Fields that no server has today.
unknown = st.dictionaries(st.text(min_size=1).map("x_{}".format), values, max_size=4)


def _event(kind: str, **more: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **more})}\n\n".encode()


def _part(dialect: str, said: str, more: dict[str, Any], *, last: bool) -> bytes:
    """One line or event of a stream, with fields that are unknown at its top and inside."""
    if dialect == "ollama":
        part = {**more, "model": "m", "message": {**more, "content": said}, "done": last}
        return json.dumps(part, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
    if dialect == "openai":
        choice = {**more, "index": 0, "delta": {**more, "content": said}, "finish_reason": "stop" if last else None}
        return b"data: " + json.dumps({**more, "choices": [choice]}).encode() + b"\n\n"
    if last:
        return _event("response.completed", **more, response={**more, "error": None, "usage": USAGE})
    return _event("response.output_text.delta", **more, delta=said)


def _cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[begin:end] for begin, end in pairwise(ends)]


def _passed(dialect: str, chunks: Sequence[bytes]) -> tuple[list[bytes], bool, InstanceFailure | None]:
    """The pieces that come out, whether the end was seen, and how it failed."""
    watched, pieces = PassThrough(dialect), list[bytes]()
    try:
        for chunk in chunks:
            pieces.extend(watched.feed(chunk))
        pieces.extend(watched.close())
    except InstanceFailure as failure:
        return pieces, watched.finished, failure
    return pieces, watched.finished, None


@pytest.mark.parametrize("dialect", ["ollama", "openai", RESPONSES])
@given(parts=st.lists(st.tuples(st.text(), unknown), max_size=5), last=unknown, places=st.lists(st.integers(0, 9999)))
def test_every_byte_passes_in_whole_lines(
    dialect: str, parts: list[tuple[str, dict[str, Any]]], last: dict[str, Any], places: list[int]
) -> None:
    """However a stream is cut on its way, all of its bytes come out, cut only where a line or an event ends."""
    lines = [*(_part(dialect, *part, last=False) for part in parts), _part(dialect, "", last, last=True)]
    stream, ends = b"".join(lines), {0}
    for line in lines:
        ends.add(max(ends) + len(line))
    for chunks in ([stream], _cut(stream, places), _cut(stream, range(len(stream)))):
        pieces, finished, failure = _passed(dialect, chunks)
        assert (b"".join(pieces), finished, failure) == (stream, True, None)
        sent = 0
        for piece in pieces:
            sent += len(piece)
            assert sent in ends
    assert is_final(dialect, lines[-1])
    assert not any(is_final(dialect, line) for line in lines[:-1])


DELTA = _event("response.output_text.delta", delta="hi")
FAILED = [
    _event("response.failed", response={"status": "failed", "error": {"code": "x", "message": "out of memory"}}),
    _event("error", code="x", message="out of memory"),
    b'data: {"error":{"message":"out of memory"}}\n\n',
    b'data: {"error": "out of memory"}\r\n\r\n',
]


@pytest.mark.parametrize("kind", ["response.completed", "response.incomplete"])
def test_the_end_of_a_response(kind: str) -> None:
    """It is an event that tells all of it; without it the answer is incomplete."""
    last = _event(kind, response={"error": None, "usage": USAGE})
    for chunks in ([DELTA + last], _cut(DELTA + last, range(len(DELTA + last)))):
        assert _passed(RESPONSES, chunks) == ([*_passed(RESPONSES, chunks)[0]], True, None)
    pieces, finished, failure = _passed(RESPONSES, [DELTA])
    assert (pieces, finished) == ([DELTA], False)
    assert failure is not None
    assert failure.kind is FailureKind.LOST


@pytest.mark.parametrize("error", FAILED)
def test_a_response_that_failed(error: bytes) -> None:
    """What came before it passes, and then it is raised in the server's words."""
    for chunks in ([DELTA + error], _cut(DELTA + error, range(len(DELTA + error)))):
        pieces, finished, failure = _passed(RESPONSES, chunks)
        assert (b"".join(pieces), finished) == (DELTA, False)
        assert failure is not None
        assert (failure.kind, failure.message) == (FailureKind.SERVER_ERROR, "out of memory")


@pytest.mark.parametrize(
    "event",
    [
        _event("response.output_text.delta", delta='{"type":"response.completed"}'),
        _event("response.output_item.done", item={"type": "x", "error": {"message": "of a tool"}}),
        _event("response.output_item.done", item={"type": "response.completed"}),
        b'data: {"type":"response.completed"\n\n',
    ],
)
def test_what_only_looks_like_the_end(event: bytes) -> None:
    """Only an event that itself says so is the last."""
    pieces, finished, failure = _passed(RESPONSES, [event])
    assert (b"".join(pieces), finished) == (event, False)
    assert failure is not None
    assert failure.kind is FailureKind.LOST


def test_the_tokens_of_a_response() -> None:
    """A response tells them in its usage, a stream in its last event."""
    expected = Usage(input_tokens=11, output_tokens=5)
    assert of_json(json.dumps({"usage": USAGE}).encode()) == expected
    assert of_json(json.dumps({"type": "response.completed", "response": {"usage": USAGE}}).encode()) == expected
    assert of_json(b'{"response":"text of a completion","prompt_eval_count":11,"eval_count":5}') == expected
    assert of_json(b'{"type":"response.created","response":{"usage":null}}') is None
    last = _event("response.completed", response={"usage": USAGE})
    (piece,) = PassThrough(RESPONSES).feed(DELTA + last)
    assert getattr(piece, "usage", None) == expected


def test_a_real_stream_passes(recorded: Callable[[str], Any]) -> None:
    """What a real Ollama sent passes whole, is seen to end, and is incomplete without its last event."""
    stream = recorded("ollama/v1_responses_stream").body
    for step in (1, 11, len(stream)):
        pieces, finished, failure = _passed(RESPONSES, _cut(stream, range(0, len(stream), step)))
        assert (b"".join(pieces), finished, failure) == (stream, True, None)
    assert not _passed(RESPONSES, [stream[: stream.index(b"event: response.completed")]])[1]
