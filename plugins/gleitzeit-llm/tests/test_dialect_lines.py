"""Lines and events out of bytes that come cut anywhere."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gleitzeit_llm.dialects.lines import MAX_LINE_BYTES, LineBuffer
from gleitzeit_llm.dialects.sse import EventBuffer, event
from gleitzeit_llm.protocol import UpstreamError

if TYPE_CHECKING:
    from collections.abc import Iterable

pytestmark = pytest.mark.fidelity

WORDS = st.lists(st.sampled_from([b"a", b"bc", "é".encode(), b"\r", b"\n", b"\r\n", b" ", b":", b"data"]))


def _chunks(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """`data`, cut at the given places."""
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(places)]


def _lines(chunks: Iterable[bytes], *, lone_cr: bool = False) -> list[bytes]:
    buffer = LineBuffer(lone_cr=lone_cr)
    found = [line for chunk in chunks for line in buffer.feed(chunk)]
    return [*found, buffer.close()]


def _events(chunks: Iterable[bytes]) -> list[bytes]:
    buffer = EventBuffer()
    found = [data for chunk in chunks for data in buffer.feed(chunk)]
    return [*found, buffer.close()]


@given(words=WORDS, cuts=st.lists(st.integers(0, 200)), lone_cr=st.booleans())
def test_cuts_do_not_change_the_lines(words: list[bytes], cuts: list[int], lone_cr: bool) -> None:  # noqa: FBT001
    """However the bytes come, the lines are those of the whole."""
    data = b"".join(words)
    whole = data.splitlines() if lone_cr else data.split(b"\n")
    found = _lines(_chunks(data, cuts), lone_cr=lone_cr)
    if lone_cr and (not data or data.endswith((b"\r", b"\n"))):
        whole.append(b"")
    assert found == whole


def test_a_carriage_return_between_chunks_ends_one_line() -> None:
    """CR at the end of a chunk and LF at the start of the next are one line's end."""
    assert _lines([b"a\r", b"\nb\r", b"c"], lone_cr=True) == [b"a", b"b", b"c"]
    assert _lines([b"a\r", b"", b"\n", b"\n"], lone_cr=True) == [b"a", b"", b""]


def test_ndjson_keeps_carriage_returns() -> None:
    """Where only LF ends a line, CR is part of it."""
    assert _lines([b"a\rb\r", b"\nc"]) == [b"a\rb\r", b"c"]


@pytest.mark.parametrize("chunks", [[b"x" * 11], [b"x" * 6, b"x" * 5], [b"x\n", b"y" * 11], [b"y" * 11 + b"\n"]])
def test_a_line_beyond_the_limit_is_refused(chunks: list[bytes]) -> None:
    """A line may not grow without bound, ended or not, and the message has the number."""
    buffer = LineBuffer(max_bytes=10)
    with pytest.raises(UpstreamError, match="longer than 10 bytes"):
        [line for chunk in chunks for line in buffer.feed(chunk)]


def test_a_line_at_the_limit_is_taken() -> None:
    """The limit itself is allowed, and holds per line."""
    buffer = LineBuffer(max_bytes=10)
    assert list(buffer.feed(b"x" * 10 + b"\n" + b"y" * 10 + b"\n")) == [b"x" * 10, b"y" * 10]
    assert MAX_LINE_BYTES == 16 * 1024 * 1024


@given(
    events=st.lists(st.binary(min_size=1).filter(lambda data: not set(data) & set(b"\r\n")), min_size=1),
    cuts=st.lists(st.integers(0, 500)),
    newline=st.sampled_from([b"\n", b"\r\n", b"\r"]),
    noise=st.sampled_from([b"", b": keep-alive\n", b"event: x\n", b"id: 7\r\n", b":\n\n", b"retry: 5\r", b"\n\n"]),
)
def test_cuts_do_not_change_the_events(events: list[bytes], cuts: list[int], newline: bytes, noise: bytes) -> None:
    """Any cut, any line end and any comment between events give the same data."""
    data = b"".join(noise + event(item).replace(b"\n", newline) for item in events)
    assert _events(_chunks(data, cuts)) == [*events, b""]


def test_the_lines_of_an_event_are_joined() -> None:
    """Several data lines are one event, their newline kept; one leading space is dropped, a second is not."""
    assert _events([b"data: a\ndata:b\ndata:  c\n\n"]) == [b"a\nb\n c", b""]


def test_a_field_without_a_colon_is_empty() -> None:
    """`data` alone is an empty line of data, as the standard has it."""
    assert _events([b"data: a\ndata\n\n"]) == [b"a\n", b""]


def test_a_byte_order_mark_is_dropped() -> None:
    """The first line may begin with one."""
    assert _events([b"\xef\xbb", b"\xbfdata: a\n\n"]) == [b"a", b""]


@pytest.mark.parametrize("tail", [b"data: b", b"data: b\n", b"data: b\r\n"])
def test_the_last_event_may_lack_its_end(tail: bytes) -> None:
    """What stands at the end of the stream is given out on close."""
    assert _events([b"data: a\n\n" + tail]) == [b"a", b"b"]


def test_an_old_error_field_becomes_an_error_object() -> None:
    """llama.cpp once wrote `error: {...}`."""
    assert _events([b'error: {"message":"x"}\n\n'])[0] == b'{"error": {"message":"x"}}'


@pytest.mark.parametrize("data", [b"<html>\n", b"[1, 2]\n", b"HTTP/1.1 502 Bad Gateway\r\n"])
def test_what_is_no_event_stream_is_refused(data: bytes) -> None:
    """A page or anything else raises, and the message shows how it begins."""
    with pytest.raises(UpstreamError, match="no event stream but") as caught:
        _events([data])
    assert data[:5].decode() in caught.value.message
    assert not caught.value.reported


def test_a_json_document_is_given_out_as_data() -> None:
    """It is most likely an error, which the reader of the data understands."""
    assert _events([b'{"error":"x"}\n']) == [b'{"error":"x"}']


def test_an_event_beyond_the_limit_is_refused() -> None:
    """Many short lines of one event are bounded as well."""
    buffer = EventBuffer(max_bytes=10)
    with pytest.raises(UpstreamError, match="event longer than 10 bytes"):
        list(buffer.feed(b"data: abcd\n" * 3))
