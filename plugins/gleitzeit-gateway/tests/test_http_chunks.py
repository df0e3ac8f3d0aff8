"""A body in chunks: any way it is cut or spoilt, what is taken is what a second reader, h11, takes."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gleitzeit_gateway.http_chunks import Chunks
from gleitzeit_gateway.http_parsing import MAX_FIELD_BYTES, MAX_FIELDS, MAX_HEAD_BYTES, BadRequest
from gleitzeit_gateway.http_request import Body

if TYPE_CHECKING:
    from collections.abc import Iterable

HEAD: Final = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK: Final = st.builds(
    lambda body, extension: b"%x%b\r\n%b\r\n" % (len(body), extension, body),
    # What looks like the end of a body, or of a line, may stand in it.
    st.text("ab\r\n0;", min_size=1, max_size=30).map(str.encode),
    st.sampled_from([b"", b";x", b';a="b"', b";a=b;c:d=" + b"e" * 40]),
)
END: Final = st.sampled_from([b"0\r\n\r\n", b"00\r\n\r\n", b"0\r\nA: b\r\n\r\n", b"0;x=y\r\nA:b\r\nC: d\r\n\r\n"])
BEHIND: Final = st.sampled_from([b"", b"\r\n", b"0\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"])
SPOILT: Final = st.lists(st.tuples(st.integers(0, 300), st.sampled_from([b"", *b"\r|\n|0|a|G|;|:| |\xff".split(b"|")])))


class Nobody:
    """The connection of these bodies."""

    transport = None

    def read_on(self) -> None:
        """There is nothing more to be read."""

    def put(self, data: bytes) -> bool:
        """Nothing is answered."""
        raise AssertionError(data)

    async def drained(self) -> None:
        """Nothing is answered."""


def read(pieces: Iterable[bytes]) -> tuple[bytes, int] | None:
    """The body, and how many bytes it took; None where it has not ended."""
    body, size = Body(Nobody(), ""), 0
    chunks = Chunks(body)
    for piece in pieces:
        size += chunks.feed(piece, 0)
        if chunks.over:
            body.end()
            return body.take_whole() or b"", size
    return None


def read_by_h11(data: bytes) -> tuple[bytes, int] | None:
    """The same, as h11 has it."""
    connection, body = h11.Connection(h11.SERVER), b""
    connection.receive_data(HEAD)
    connection.next_event()
    connection.receive_data(data)
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            return None
        if isinstance(event, h11.Data):
            body += bytes(event.data)
        if isinstance(event, h11.EndOfMessage):
            return body, len(data) - len(connection.trailing_data[0])


def pieces_of(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """`data`, cut."""
    ends = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[begin:end] for begin, end in itertools.pairwise(ends)]


@given(st.lists(CHUNK, max_size=4), END, BEHIND, st.lists(st.integers(0, 500), max_size=6))
def test_however_it_is_cut(chunks: list[bytes], end: bytes, behind: bytes, cuts: list[int]) -> None:
    """It is what was sent, and ends where it ends, whatever looks like an end in it and whatever follows."""
    sent = b"".join(chunks) + end
    found = read(pieces_of(sent + behind, cuts))
    assert found == read_by_h11(sent + behind)
    assert found is not None
    assert found[1] == len(sent)
    assert read(bytes([byte]) for byte in sent) == found


@settings(max_examples=400)
@given(st.lists(CHUNK, max_size=3), END, BEHIND, SPOILT, st.lists(st.integers(0, 500), max_size=3))
def test_what_is_spoilt(
    chunks: list[bytes], end: bytes, behind: bytes, spoilt: list[tuple[int, bytes]], cuts: list[int]
) -> None:
    """Nothing is taken for another body than it is, and cuts make no difference."""
    data = b"".join(chunks) + end + behind
    for at, byte in spoilt[:3]:
        data = data[: at % len(data)] + byte + data[at % len(data) + 1 :]
        data = data or b"0"
    try:
        found = read(pieces_of(data, cuts))
    except BadRequest:
        with pytest.raises(BadRequest):
            read(bytes([byte]) for byte in data)
        return
    assert read(bytes([byte]) for byte in data) == found
    if found is not None:
        assert found == read_by_h11(data)


@pytest.mark.parametrize(
    "data",
    [
        *(b"G\r\n", b"\r\n", b"-1\r\n", b"+1\r\n", b"0x1\r\n", b"1 \r\n", b"1\n", b"1;\0\r\n", b"0" * 16 + b"\r\n"),
        *(b"1\r\nab", b"1\r\na\n"),
        *(b"1;" + b"x" * 99 + b"\0", b"1;x\rx", b"0\r\nA:b\0", b"0\r\n" + b"A" * 257),
        *(b"0\r\nA b\r\n", b"0\r\n: b\r\n", b"0\r\n A: b\r\n", b"0\r\nA : b\r\n"),
    ],
)
def test_refused(data: bytes) -> None:
    """What is no chunk is refused at once, and not waited for."""
    for pieces in ([data], [data[at : at + 1] for at in range(len(data))]):
        with pytest.raises(BadRequest) as raised:
            read(pieces)
        assert raised.value.status == 400


@pytest.mark.parametrize(
    "data",
    [
        b"1;" + b"x" * MAX_FIELD_BYTES,
        b"1\r\na\r\n1;" + b"x" * MAX_FIELD_BYTES + b"\r\n",
        b"0\r\nA: " + b"x" * MAX_FIELD_BYTES,
        b"0\r\n" + b"A: b\r\n" * (MAX_FIELDS + 1),
        b"0\r\n" + (b"A: " + b"b" * (MAX_FIELD_BYTES - 8) + b"\r\n") * (MAX_HEAD_BYTES // MAX_FIELD_BYTES + 1),
    ],
    ids=["first line", "line", "header", "headers", "all headers"],
)
def test_limits(data: bytes) -> None:
    """What stands between chunks, and behind them, is bounded."""
    for size in (1, 4096):
        with pytest.raises(BadRequest) as raised:
            read(pieces_of(data, range(0, len(data), size)))
        assert raised.value.status == 431


def test_what_had_come_before_is_there() -> None:
    """Where a body is spoilt in its middle, its reader gets what was right of it, and then an error."""
    body = Body(Nobody(), "")
    with pytest.raises(BadRequest):
        Chunks(body).feed(b"3\r\nabc\r\n2\r\nde__", 0)
    assert body.unread_bytes == 5
