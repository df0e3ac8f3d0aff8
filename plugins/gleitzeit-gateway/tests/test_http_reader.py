"""Requests as bytes: any way they are cut, whatever limits they break; a second reader, h11, says what they mean."""

from __future__ import annotations

import itertools
import tracemalloc
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gleitzeit_gateway.http_parsing import (
    MAX_FIELD_BYTES,
    MAX_FIELDS,
    MAX_HEAD_BYTES,
    BadRequest,
    HeadLimits,
    HeadTooLarge,
)
from gleitzeit_gateway.http_reader import RequestReader

if TYPE_CHECKING:
    from collections.abc import Iterable

TOKEN: Final = st.text("abcXYZ019-_!#$%&'*+.^`|~", min_size=1, max_size=12)
VALUE: Final = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=20)
TARGET: Final = st.text("abc/%20?&=~.:@-", max_size=30).map("/{}".format)
# What decides where a body ends, and what this project looks at, is not for chance to say.
RESERVED: Final = frozenset(
    ("content-length", "transfer-encoding", "connection", "upgrade", "host", "expect", "content-encoding")
)


@dataclass(frozen=True)
class Asked:
    """A request as it is meant."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    chunks: tuple[int, ...] | None

    def sent(self) -> bytes:
        """As it goes over the wire."""
        lines = [f"{self.method} {self.target} HTTP/1.1", "Host: x", *(f"{k}: {v}" for k, v in self.headers)]
        if self.chunks is None:
            return "\r\n".join([*lines, f"Content-Length: {len(self.body)}", "", ""]).encode() + self.body
        top = "\r\n".join([*lines, "Transfer-Encoding: chunked", "", ""]).encode()
        cuts = sorted({0, len(self.body), *(cut % (len(self.body) + 1) for cut in self.chunks)})
        parts = [self.body[a:b] for a, b in itertools.pairwise(cuts)]
        return top + b"".join(b"%x;x=y\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\nTrailer: t\r\n\r\n"


ASKED: Final = st.builds(
    Asked,
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"]),
    TARGET,
    st.lists(st.tuples(TOKEN.filter(lambda name: name.lower() not in RESERVED), VALUE), max_size=5).map(tuple),
    st.binary(max_size=60),
    st.none() | st.lists(st.integers(0, 1000), max_size=4).map(tuple),
)


class Line:
    """Stands for a connection."""

    transport = None

    def read_on(self) -> None:
        """Nothing is held back."""

    def put(self, data: bytes) -> bool:
        """Nothing is answered."""
        return not data

    async def drained(self) -> None:
        """At once."""


def feed(reader: RequestReader, pieces: Iterable[bytes]) -> RequestReader:
    """`reader`, which was fed these."""
    for piece in pieces:
        reader.feed(piece)
    return reader


def read(*pieces: bytes) -> RequestReader:
    """A reader that was fed these."""
    return feed(RequestReader(Line()), pieces)


def found(reader: RequestReader) -> list[tuple[str, str, list[tuple[str, str]], bytes | None]]:
    """What it has read: method, target, headers, and the body where all of it is there."""
    return [(one.method, one.target, [*one.headers.items()], one.content.take_whole()) for one in [*reader.requests]]


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` in pieces."""
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


@given(st.lists(ASKED, min_size=1, max_size=4), st.lists(st.integers(0, 10_000), max_size=12))
@settings(max_examples=150, deadline=None)
def test_requests_cut_anywhere(asked: list[Asked], cuts: list[int]) -> None:
    """However requests are cut on their way, those are read that were sent, in order, with all their bytes."""
    reader = read(*cut(b"".join(one.sent() for one in asked), cuts))
    assert [(m, t, body) for m, t, _, body in found(reader)] == [(one.method, one.target, one.body) for one in asked]
    for one, (_, _, headers, _) in zip(asked, found(reader), strict=True):
        assert [pair for pair in headers if pair[0].lower() not in RESERVED] == list(one.headers)
    assert (reader.current, reader.begun, reader.over) == (None, False, False)


def second_opinion(data: bytes) -> list[tuple[str, str, bytes]] | None:
    """What h11 reads of `data`: whole requests; None when it refuses any of it."""
    connection, requests = h11.Connection(h11.SERVER, max_incomplete_event_size=10**6), []
    body, head = b"", None
    try:
        connection.receive_data(data)
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                head, body = event, b""
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                requests.append((head.method.decode(), head.target.decode(), body))
                connection.send(h11.Response(status_code=204, headers=[]))
                connection.send(h11.EndOfMessage())
                if connection.their_state is not h11.DONE:
                    return requests
                connection.start_next_cycle()
            else:
                return requests
    except h11.RemoteProtocolError:
        return None


@given(
    st.lists(ASKED, min_size=1, max_size=2),
    st.lists(st.tuples(st.integers(0, 10_000), st.binary(max_size=4)), max_size=3),
)
@settings(max_examples=300, deadline=None)
def test_never_another_meaning(asked: list[Asked], changes: list[tuple[int, bytes]]) -> None:
    """Bytes that were tampered with are refused, or mean to us what they mean to h11: nothing can be smuggled past."""
    data = b"".join(one.sent() for one in asked)
    for place, instead in changes:
        at = place % (len(data) + 1)
        data = data[:at] + instead + data[at + len(instead) :]
    reader = RequestReader(Line())
    try:
        reader.feed(data)
    except BadRequest:
        return
    whole = [(m, t, b) for (m, t, _, b), one in zip(found(reader), reader.requests, strict=True) if b is not None]
    opinion = second_opinion(data)
    if opinion is not None:
        least = min(len(whole), len(opinion))
        assert whole[:least] == opinion[:least]


@given(ASKED, st.lists(st.binary(max_size=30), min_size=1, max_size=4), st.lists(st.integers(0, 10_000), max_size=8))
@settings(max_examples=150, deadline=None)
def test_the_same_head_again(asked: Asked, bodies: list[bytes], cuts: list[int]) -> None:
    """Requests that differ in their bodies only are read as well as any others, and each says its own length."""
    every = [asked, *(replace(asked, body=body) for body in bodies)]
    reader = read(*cut(b"".join(one.sent() for one in every), cuts))
    assert [(m, t, body) for m, t, _, body in found(reader)] == [(one.method, one.target, one.body) for one in every]
    for one, request in zip(every, reader.requests, strict=True):
        assert request.content_length == (len(one.body) if one.chunks is None else None)
        assert request.headers.get("Content-Length") == (None if one.chunks is not None else str(len(one.body)))
        assert [pair for pair in request.headers.items() if pair[0].lower() not in RESERVED] == list(one.headers)
    assert (reader.current, reader.begun, reader.over) == (None, False, False)


@given(ASKED, st.lists(st.tuples(st.integers(0, 10_000), st.binary(max_size=4)), min_size=1, max_size=3))
@settings(max_examples=300, deadline=None)
def test_nearly_the_same_head_again(asked: Asked, changes: list[tuple[int, bytes]]) -> None:
    """What differs from the head before in anything but the length is read anew, and refused or meant as h11 says."""
    first, second = asked.sent(), asked.sent()
    for place, instead in changes:
        at = place % (len(second) + 1)
        second = second[:at] + instead + second[at + len(instead) :]
    reader = read(first)
    try:
        reader.feed(second)
    except BadRequest:
        return
    whole = [(m, t, b) for m, t, _, b in found(reader) if b is not None]
    opinion = second_opinion(first + second)
    if opinion is not None:
        least = min(len(whole), len(opinion))
        assert whole[:least] == opinion[:least]


@pytest.mark.parametrize(
    "field",
    [b"Content-Length:  3", b"Content-Length: 3 ", b"content-length: 3", b"Content-Length:3", b"X: Content-Length: 9"],
)
def test_however_the_length_is_written(field: bytes) -> None:
    """A length in any form that is allowed is one, also the second time; what only looks like one is none."""
    length = 0 if field.startswith(b"X") else 3
    sent = b"POST / HTTP/1.1\r\nHost: x\r\n" + field + b"\r\n\r\n" + b"abc"[:length]
    reader = read(sent, sent, sent)
    assert [body for _, _, _, body in found(reader)] == [b"abc"[:length]] * 3


@pytest.mark.parametrize("before", [b"\r\n\r\n", b"\n\r\n\r\n", b"\n\n\r\n\r\n", b"\r\n"])
def test_empty_lines_are_no_request(before: bytes) -> None:
    """However many stand before a request, and whether they come again: each request is one."""
    sent = before + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    reader = read(sent, before, before, sent)
    assert [target for _, target, _, _ in found(reader)] == ["/", "/"]


def test_stray_ends_of_lines_add_up_to_nothing() -> None:
    """Old senders put one after each body; however many requests they send, each is read."""
    sent = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx\r\n"
    reader = read(*[sent] * MAX_FIELD_BYTES)
    assert len(reader.requests) == MAX_FIELD_BYTES


def test_what_is_kept_of_a_head_is_small() -> None:
    """A head may be long, also by blanks that stand for nothing; what stays of it while a connection waits may not."""
    sent = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx"
    long = b"GET /long HTTP/1.1\r\nHost: a\r\nX:" + b" " * 60_000 + b"a\r\n\r\n"
    reader = read(sent)
    reader.requests.clear()
    tracemalloc.start()
    try:
        reader.feed(sent + long)
        reader.requests.clear()
        assert tracemalloc.get_traced_memory()[0] < len(long) / 10
    finally:
        tracemalloc.stop()


def test_a_head_is_read_once() -> None:
    """Requests with the same head share what was read of it, whatever their lengths; others do not."""
    sent = [b"POST /%b HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\na" % path for path in (b"a", b"a", b"b", b"a")]
    sent.append(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 12\r\n\r\nabcdefghijkl")
    heads = [request.head for request in read(*sent).requests]
    assert heads[0] is heads[1]
    assert heads[3] is heads[4]
    assert len(set(map(id, heads))) == 3
    assert [request.headers["Content-Length"] for request in read(*sent).requests] == ["1", "1", "1", "1", "12"]


@given(st.binary(max_size=200), st.lists(st.integers(0, 300), max_size=5))
@settings(max_examples=300, deadline=None)
def test_anything_at_all(data: bytes, cuts: list[int]) -> None:
    """Whatever comes is read, waited for, or refused with a status; nothing else is ever raised."""
    reader = RequestReader(Line())
    for piece in cut(data, cuts):
        try:
            reader.feed(piece)
        except BadRequest as error:
            assert error.status in (400, 414, 431)
            assert error.message
            return


# -- limits and refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /" + b"x" * MAX_FIELD_BYTES + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * MAX_FIELD_BYTES + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * (MAX_FIELDS + 1) + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + (b"X: " + b"y" * 1000 + b"\r\n") * (MAX_HEAD_BYTES // 1000 + 1) + b"\r\n", 431),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * (MAX_FIELDS + 1), 431),
        (b"GET / HTTP/2.0\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET http://[/ HTTP/1.1\r\n\r\n", 400),
        (b"GET nothing HTTP/1.1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding:\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX : y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: y\r\n folded\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: a\x00b\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    ],
)
def test_what_is_refused(sent: bytes, status: int) -> None:
    """Each limit and each ambiguity is refused with its own status, at once or a byte at a time."""
    for pieces in ([sent], [sent[at : at + 1] for at in range(len(sent))]):
        with pytest.raises(BadRequest) as caught:
            read(*pieces)
        assert caught.value.status == status


@given(
    st.lists(ASKED, max_size=3),
    st.sampled_from([b"", b"\r\n", b"\n\r\n"]),
    st.integers(0, 5),
    st.lists(st.integers(0, 10_000), max_size=12),
)
@settings(max_examples=150, deadline=None)
def test_each_head_has_its_limits(before: list[Asked], blank: bytes, headers: int, cuts: list[int]) -> None:
    """Whatever came before it, and however it is cut: a head may be so large to the byte and to the header."""
    head = b"GET / HTTP/1.1\r\n" + b"X:  y \r\n" * headers + b"\r\n"
    first = b"".join(one.sent() for one in before)
    most_bytes = max([len(head), *(len(one.sent()) for one in before)])
    most_headers = max([headers, *(len(one.headers) + 2 for one in before)])
    sent = cut(first + blank + head, cuts)

    reader = feed(RequestReader(Line(), HeadLimits(most_bytes, most_headers)), sent)
    assert len(reader.requests) == len(before) + 1
    if not before:
        for less in (HeadLimits(most_bytes - 1, most_headers), HeadLimits(most_bytes, most_headers - 1)):
            with pytest.raises(HeadTooLarge):
                feed(RequestReader(Line(), less), sent)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("repeated", [False, True])
def test_limits_of_a_head_that_is_sent_ahead(*, chunked: bool, repeated: bool) -> None:
    """One that comes behind a body, in the same piece or a byte at a time, has the limits of the first."""
    framing, body = (b"Transfer-Encoding: chunked", b"1\r\na\r\n0\r\n\r\n") if chunked else (b"Content-Length: 1", b"a")
    first = b"POST / HTTP/1.1\r\n" + framing + b"\r\n\r\n" + body
    small, large = (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * count + b"\r\n" for count in (10, 11))
    for limits in (HeadLimits(max_headers := 10**3, 10), HeadLimits(len(small), max_headers)):
        for size in (1, 10**6):
            sent = (first * 2 if repeated else first) + small + large
            reader = RequestReader(Line(), limits)
            with pytest.raises(HeadTooLarge):
                feed(reader, (sent[at : at + size] for at in range(0, len(sent), size)))
            assert [one.method for one in reader.requests] == ["POST"] * (1 + repeated) + ["GET"]


def test_enough_is_enough() -> None:
    """A reader that is to read so many ahead says where it has stopped; nothing is lost, nor read before its turn."""
    sent = b"".join(
        b"POST /%d HTTP/1.1\r\n" % number + framed
        for number, framed in enumerate(
            [b"Content-Length: 2\r\n\r\nab", b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"] * 20
        )
    )
    reader, at, taken = RequestReader(Line(), ahead=3), 0, []
    while at < len(sent):
        at = reader.feed(sent, at)
        assert 1 <= len(reader.requests) <= 3
        taken.append(reader.requests.pop(0))
    taken += reader.requests
    assert [(one.path, one.content.take_whole()) for one in taken] == [(f"/{number}", b"ab") for number in range(40)]


def test_what_has_no_end() -> None:
    """A line that never ends is refused before it fills the memory: between requests, in a head, between chunks."""
    for begun in (b"", b"GET / HTTP/1.1\r\nX: ", b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;"):
        reader, more = read(begun), b"x" * 1024 if begun else b"\r\n" * 512
        for _ in range(MAX_FIELD_BYTES // 1024 - 1):
            reader.feed(more)
        with pytest.raises(BadRequest):
            read(begun, *([more] * 100))


def test_nothing_after_the_last() -> None:
    """After a request that closes its connection nothing is read; after an upgrade, which is declined, all is."""
    reader = read(b"GET /a HTTP/1.1\r\nConnection: close\r\n\r\nGET /b HTTP/1.1\r\n\r\n")
    assert ([one.path for one in reader.requests], reader.over) == (["/a"], True)
    offer = b"POST /a HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: x\r\n%b\r\n\r\n"
    for framed in (
        offer % b"Content-Length: 2" + b"hi",
        offer % b"Transfer-Encoding: chunked" + b"2\r\nhi\r\n0\r\n\r\n",
    ):
        reader = read(framed + offer % b"X: y" + b"GET /b HTTP/1.1\r\n\r\n")
        assert [(one.path, one.content.take_whole()) for one in reader.requests] == [
            ("/a", b"hi"),
            ("/a", b""),
            ("/b", b""),
        ]
    tunnel = read(b"CONNECT a:80 HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\n")
    assert ([one.method for one in tunnel.requests], tunnel.over) == (["CONNECT"], True)


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/api/tags", "/api/tags", {}),
        (b"/%61pi/tags?a=%20b&c", "/api/tags", {"a": " b", "c": ""}),
        (b"/a/../b#x", "/a/../b", {}),
        (b"//a/b", "//a/b", {}),
        (b"http://localhost:1/api/tags?a=b", "/api/tags", {"a": "b"}),
        (b"*", "*", {}),
    ],
)
def test_targets(target: bytes, path: str, query: dict[str, str]) -> None:
    """A path is decoded, and neither cleaned up nor mixed up with its query."""
    (request,) = read(b"OPTIONS " + target + b" HTTP/1.1\r\n\r\n").requests
    assert (request.path, dict(request.query)) == (path, query)
    assert repr(request) == f"<Request OPTIONS {path}>"
