"""Answers of HTTP/1.1 as bytes: what is read is what h11 reads, however it is cut, and everything has a limit."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gleitzeit_llm.http1 import MAX_FIELD_BYTES, MAX_FIELDS, MAX_HEAD_BYTES, MAX_INTERIM, AnswerReader, Head, NotHTTP
from gleitzeit_llm.written import MAX_WRITTEN_BYTES


@dataclass(frozen=True)
class Read:
    """What a reader made of an answer.

    Args:
        status: 0 when its head is not there.
        headers: Names in lower case.
        body: As far as it came.
        complete: Whether that is all of it.
        reusable: Whether its connection can be used again.
    """

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    complete: bool
    reusable: bool


def ours(pieces: list[bytes], method: str = "POST", *, ended: bool = True) -> Read | None:
    """What our reader makes of it; None when it refuses."""
    return read_by(AnswerReader(), pieces, method, ended=ended)


def read_by(reader: AnswerReader, pieces: list[bytes], method: str = "POST", *, ended: bool = False) -> Read | None:
    """The same by a reader that may have read other answers before."""
    reader.expect(method)
    body = b""
    try:
        for piece in pieces:
            reader.feed(piece)
            body += reader.take()
    except NotHTTP:
        return None
    reusable = reader.reusable
    if ended:
        reader.end()
    how = "utf-8", "surrogateescape"
    headers = tuple((name.encode(*how).lower(), value.encode(*how)) for name, value in reader.headers.items())
    return Read(reader.head.status, headers, body, reader.complete, reusable)


def theirs(pieces: list[bytes], method: str = "POST", *, ended: bool = True) -> Read | None:
    """What h11 makes of it; None when it refuses."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "x"), ("Content-Length", "0")]))
    client.send(h11.EndOfMessage())
    status, headers, body, complete, reusable = 0, (), b"", False, False
    try:
        for piece in [*filter(None, pieces), *[b""] * ended]:
            client.receive_data(piece)
            while not complete:
                event = client.next_event()
                if isinstance(event, h11.Response):
                    status, headers = event.status_code, tuple(event.headers)
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    complete, reusable = True, client.their_state is h11.DONE and client.our_state is h11.DONE
                elif not isinstance(event, h11.InformationalResponse):
                    break
            if complete:
                break
    except h11.RemoteProtocolError:
        return None  # It refuses an end that comes too early, too.
    return Read(status, headers, body, complete, reusable)


# -- answers -------------------------------------------------------------------------------------------------------

TOKENS = st.text("abcXYZ09-_", min_size=1, max_size=12).map(lambda text: b"X-" + text.encode())
VALUES = st.text('abc XYZ,;="/é', max_size=20).map(lambda text: text.strip().encode())
FIELDS = st.lists(st.tuples(TOKENS, VALUES), max_size=4)
BODIES = st.binary(max_size=200)


def lines(fields: list[tuple[bytes, bytes]]) -> bytes:
    """Fields as they are sent."""
    return b"".join(b"%b: %b\r\n" % field for field in fields)


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """An answer as a server may send it, with all that HTTP allows."""
    interim = draw(st.lists(st.sampled_from([100, 102, 103]), max_size=3))
    before = b"".join(b"HTTP/1.1 %d Early\r\n%b\r\n" % (status, lines(draw(FIELDS))) for status in interim)
    version = draw(st.sampled_from([b"1.1", b"1.1", b"1.0"]))
    status = draw(st.sampled_from([200, 201, 204, 206, 301, 304, 400, 404, 429, 500, 503]))
    reason = draw(st.sampled_from([b" OK", b" ", b" Not  Found", b""]))
    fields = draw(FIELDS)
    keep = draw(st.sampled_from([b"", b"close", b"keep-alive", b"Keep-Alive"]))
    if keep:
        fields = [*fields, (b"Connection", keep)]
    body, framing = draw(BODIES), draw(st.sampled_from(["length", "chunked", "end"]))
    if status in (204, 304):
        body, framing = b"", "end"
    if framing == "length":
        fields = [*fields, (b"Content-Length", b"%d" % len(body))]
    elif framing == "chunked" and version == b"1.1":
        fields = [*fields, (b"Transfer-Encoding", b"chunked")]
        body = chunked(draw, body)
    return before + b"HTTP/%b %d%b\r\n%b\r\n" % (version, status, reason, lines(draw(st.permutations(fields)))) + body


def chunked(draw: st.DrawFn, body: bytes) -> bytes:
    """`body` in chunks, with extensions and trailers."""
    cuts = sorted(draw(st.sets(st.integers(0, len(body)), max_size=4)) | {0, len(body)})
    pieces = [body[begin:end] for begin, end in itertools.pairwise(cuts) if end > begin]
    extension = draw(st.sampled_from([b"", b";a", b";a=b", b';a="b c"']))
    sent = b"".join(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces)
    return sent + draw(st.sampled_from([b"0", b"000"])) + b"\r\n" + lines(draw(FIELDS)) + b"\r\n"


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """`data` in pieces."""
    at = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[begin:end] for begin, end in itertools.pairwise(at)]


PLACES = st.lists(st.integers(0, 2000), max_size=8)


@given(answers(), PLACES)
def test_what_a_server_may_send_is_read_as_h11_reads_it(answer: bytes, places: list[int]) -> None:
    """Interim answers, every framing, extensions, trailers: status, headers, body and whether the connection lasts."""
    found, wanted, still_open = ours(cut(answer, places)), theirs([answer]), theirs([answer], ended=False)
    assert found is not None
    assert wanted is not None
    assert still_open is not None
    assert found.complete
    assert (found.status, found.headers, found.body) == (wanted.status, wanted.headers, wanted.body)
    # h11 knows nothing of keeping connections in HTTP/1.0, which is allowed.
    assert found.reusable == still_open.reusable or b"HTTP/1.0" in answer


@given(answers(), st.integers(0, 2000), PLACES)
def test_an_answer_that_is_cut_off_is_complete_only_where_it_is_for_h11(
    answer: bytes, length: int, places: list[int]
) -> None:
    """Wherever it ends, what is missing is noticed."""
    sent = answer[: length % (len(answer) + 1)]
    found, wanted = ours(cut(sent, places)), theirs([sent])
    assert found is not None
    assert found.complete == (wanted is not None and wanted.complete)
    if wanted is not None and found.complete:
        assert (found.status, found.body) == (wanted.status, wanted.body)


@given(
    answers(), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 3), st.binary(max_size=3)), max_size=3), PLACES
)
def test_damaged_answers_are_never_read_otherwise_than_by_h11(
    answer: bytes, damage: list[tuple[int, int, bytes]], places: list[int]
) -> None:
    """Nothing but a refusal is raised, and what both take for a whole answer is the same to both."""
    sent = bytearray(answer)
    for at, removed, put in damage:
        begin = at % (len(sent) + 1)
        sent[begin : begin + removed] = put
    found, wanted = ours(cut(bytes(sent), places)), theirs([bytes(sent)])
    if found is not None and wanted is not None and found.complete and wanted.complete:
        assert (found.status, found.body) == (wanted.status, wanted.body)


@given(st.binary(max_size=300), PLACES)
def test_noise_is_refused_or_incomplete(noise: bytes, places: list[int]) -> None:
    """What is no HTTP at all never becomes an answer."""
    found = ours(cut(noise, places))
    assert found is None or not found.complete


@given(answers(), PLACES)
def test_cuts_make_no_difference(answer: bytes, places: list[int]) -> None:
    """However the bytes are cut on their way, what is read is the same."""
    assert ours(cut(answer, places)) == ours([answer])


@given(answers(), st.binary(min_size=1, max_size=50), PLACES)
def test_what_follows_an_answer_spoils_its_connection(answer: bytes, more: bytes, places: list[int]) -> None:
    """Nobody asked for it, and it must not be taken for the next answer; this one stays as it is."""
    alone = ours([answer])
    assert alone is not None
    if not alone.reusable or not more.strip(b"\r\n"):
        return
    found = ours([*cut(answer, places), more])
    assert found is not None
    assert not found.reusable
    assert (found.status, found.body, found.complete) == (alone.status, alone.body, True)
    joined = ours([answer + more])
    assert joined is not None
    assert not joined.reusable
    assert joined.body == alone.body


def test_the_answer_to_head_has_no_body() -> None:
    """Its length tells what a GET would bring."""
    found = ours([b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"], "HEAD", ended=False)
    assert found == Read(200, ((b"content-length", b"10"),), b"", complete=True, reusable=False)


def test_case_does_not_count_in_what_frames_a_body() -> None:
    """Nor do spaces around it."""
    found = ours([b"HTTP/1.1 200 OK\r\ntransfer-ENCODING:  Chunked \r\n\r\n2\r\nok\r\n0\r\n\r\n"], ended=False)
    assert found is not None
    assert (found.body, found.complete, found.reusable) == (b"ok", True, True)


def test_lines_that_end_as_they_should_not() -> None:
    """Old servers leave the CR out, and pad the sizes of chunks with spaces."""
    for sent in (
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2  \r\nok\r\n0\r\n\r\n",
    ):
        found = ours([sent], ended=False)
        assert found is not None
        assert (found.body, found.complete) == (b"ok", True)


def test_content_type_and_encoding() -> None:
    """They are read without parameters and in lower case; ``identity`` is none."""
    reader = AnswerReader()
    assert reader.head.content_type == "application/octet-stream"
    reader.feed(b"HTTP/1.1 200 OK\r\nContent-Type: Text/HTML; charset=x\r\nContent-Encoding: identity\r\n\r\n")
    assert (reader.head.content_type, reader.head.encoding) == ("text/html", "")
    assert Head(200, ()).content_type == "application/octet-stream"


# -- several answers of one connection -----------------------------------------------------------------------------

# Where the body's length is to stand.
DIGITS = b"DIGITS"


@st.composite
def sequences(draw: st.DrawFn) -> list[tuple[str, bytes, list[int]]]:
    """Requests and their answers, as they come one after another: most have a head that others have too."""
    fields = [*draw(FIELDS), *draw(st.sampled_from([[], [(b"Connection", b"keep-alive")], [(b"X-Key", b"a" * 5000)]]))]
    length = draw(st.sampled_from([b"Content-Length", b"content-length", b"Content-LENGTH"])), DIGITS
    line = b"HTTP/" + draw(st.sampled_from([b"1.1 200 OK", b"1.1 200 OK", b"1.1 503 ", b"1.0 200 OK", b"1.1 304 Same"]))
    usual = line + b"\r\n" + lines(draw(st.permutations([*fields, length]))) + b"\r\n"
    return [draw(exchanges(usual)) for _ in range(draw(st.integers(2, 6)))]


@st.composite
def exchanges(draw: st.DrawFn, usual: bytes) -> tuple[str, bytes, list[int]]:
    """A method, an answer, mostly one with the usual head, and where it is cut."""
    method = draw(st.sampled_from(["POST"] * 9 + ["HEAD"]))
    body, places = draw(BODIES), draw(st.one_of(st.just([]), PLACES))
    match draw(st.sampled_from(["", "", "", "", "digits", "more", "damage", "another"])):
        case "digits":
            digits = draw(st.sampled_from([b"00%d", b"+%d", b"%d ", b" %d", b"%d0", b"%dx", b"-%d", b"%d\r\n "]))
            return method, usual.replace(DIGITS, digits % len(body)) + body, places
        case "more":
            more = draw(st.sampled_from([b"\r\n", b"{}", b"HTTP/1.1 200 OK\r\n\r\n"]))
            return method, usual.replace(DIGITS, b"%d" % len(body)) + body + more, places
        case "damage":
            at, put = draw(st.integers(0, 200)), draw(st.sampled_from([b"", b" ", b"\n", b"\r\n", b"0", b"x"]))
            answer = usual.replace(DIGITS, b"%d" % len(body)) + body
            return method, answer[:at] + put + answer[at + 1 :], places
        case "another":
            return method, draw(answers()), places
    return method, usual.replace(DIGITS, b"%d" % len(body)) + body, places


def bare(headers: tuple[tuple[bytes, bytes], ...]) -> tuple[tuple[bytes, bytes], ...]:
    """The same, without zeros before a length."""
    return tuple((name, value.lstrip(b"0") if name == b"content-length" else value) for name, value in headers)


@given(sequences())
def test_what_is_remembered_of_a_head_makes_no_difference(sequence: list[tuple[str, bytes, list[int]]]) -> None:
    """A reader that has read others reads every answer as one that has not."""
    reader = AnswerReader()
    for method, answer, places in sequence:
        pieces = cut(answer, places)
        found, wanted = read_by(reader, pieces, method), read_by(AnswerReader(), pieces, method)
        if found is not None and wanted is not None:
            # The one may take line ends after a body for what they are, and the other tells its length without zeros.
            assert found.reusable == wanted.reusable or (wanted.reusable and answer.endswith(b"\n"))
            wanted = replace(wanted, reusable=found.reusable, headers=bare(wanted.headers))
            assert replace(found, headers=bare(found.headers)) == wanted
        else:
            assert found == wanted
        if found is None or not found.reusable:
            reader = AnswerReader()


USUAL = b"HTTP/1.1 200 OK\r\nContent-Type: text/x\r\nContent-Length: %b\r\nX: y\r\n\r\n%b"


@pytest.mark.parametrize("length", [0, 2, 10, 123_456])
def test_a_head_that_comes_again_is_not_parsed(length: int) -> None:
    """Whatever the length of its body, and however it is cut behind its head."""
    reader = AnswerReader()
    assert read_by(reader, [USUAL % (b"2", b"{}")]) is not None
    reader.dismiss()  # Without a parser nothing else can be read.
    body = b"x" * length
    answer = USUAL % (b"%d" % length, body)
    for pieces in ([answer], cut(answer, [len(answer) - length, len(answer) - length // 2])):
        found = read_by(reader, pieces)
        assert found is not None
        assert (found.status, found.body, found.complete, found.reusable) == (200, body, True, True)
        assert (b"content-length", b"%d" % length) in found.headers


ALMOST = {
    "more digits than a length has": USUAL % (b"0" * 15 + b"2", b"{}"),
    "no digits": USUAL % (b"", b""),
    "other digits": USUAL % ("\u0662".encode(), b"{}"),
    "a sign": USUAL % (b"+2", b"{}"),
    "a space": USUAL % (b" 2", b"{}"),
    "a space behind": USUAL % (b"2 ", b"{}"),
    "a list": USUAL % (b"2, 2", b"{}"),
    "a line in the length": USUAL % (b"2\r\nContent-Length: 3", b"{}"),
    "another field": (USUAL % (b"2", b"{}")).replace(b"X: y", b"X: z"),
    "another status": (USUAL % (b"2", b"{}")).replace(b"200", b"204"),
    "coded otherwise": (USUAL % (b"2", b"{}")).replace(b"X: y", b"Transfer-Encoding: chunked"),
    "a body that is too long": USUAL % (b"2", b"{}{}"),
    "another answer": USUAL % (b"2", b"{}") * 2,
}


@pytest.mark.parametrize("answer", ALMOST.values(), ids=ALMOST)
def test_a_head_that_is_almost_the_last_one_is_parsed(answer: bytes) -> None:
    """It is read, or refused, as if it were the first."""
    for pieces in ([answer], [answer[at : at + 1] for at in range(len(answer))]):
        reader = AnswerReader()
        assert read_by(reader, [USUAL % (b"2", b"{}")]) is not None
        assert read_by(reader, pieces) == read_by(AnswerReader(), pieces)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\n{}\r\n\r\n"[:-4],
        b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length:2\r\n\r\n{}",
        b"HTTP/1.1 103 Hints\r\nContent-Length: 2\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 304 Same\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * MAX_WRITTEN_BYTES + b"\r\nContent-Length: 2\r\n\r\n{}",
    ],
    ids=["LF", "folded", "no space", "interim", "no body", "chunks", "a line before", "long"],
)
def test_an_unusual_head_is_parsed_each_time(answer: bytes) -> None:
    """Nothing of it is kept."""
    reader = AnswerReader()
    for _ in range(3):
        assert read_by(reader, [answer]) == read_by(AnswerReader(), [answer])
    assert repr(reader).endswith("nothing remembered>")


# -- what is refused -----------------------------------------------------------------------------------------------

REFUSED = {
    "another protocol": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "two framings": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
    "two framings, the other way round": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n",
    "a length that is none": b"HTTP/1.1 200 OK\r\nContent-Length: 2x\r\n\r\n",
    "a negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n",
    "another coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "no chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\n",
    "another version": b"HTTP/2.0 200 OK\r\n\r\n",
    "an old version": b"HTTP/0.9 200 OK\r\n\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "a chunk without a size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
    "a chunk of endless size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n",
}


@pytest.mark.parametrize("sent", REFUSED.values(), ids=REFUSED)
def test_what_could_be_read_in_two_ways_is_refused(sent: bytes) -> None:
    """As a whole and byte by byte."""
    for pieces in ([sent], [sent[at : at + 1] for at in range(len(sent))]):
        assert ours(pieces, ended=False) is None


# -- limits --------------------------------------------------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
FULL = b"X: " + b"y" * 15_000 + b"\r\n"
ENDLESS = {
    "a first line": (b"HTTP/1.1 200 ", b"K" * 1000),
    "a name": (OK, b"n" * 1000),
    "a value": (OK + b"X: ", b"v" * 1000),
    "headers": (OK, b"X: y\r\n" * 10),
    "large headers": (OK, FULL),
    "interim answers": (b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
    "a size": (CHUNKED, b"0" * 1000),
    "an extension": (CHUNKED + b"5;", b"e" * 1000),
    "trailers": (CHUNKED + b"0\r\n", b"X: y\r\n" * 10),
    "a trailer": (CHUNKED + b"0\r\nX: ", b"v" * 1000),
}


@pytest.mark.parametrize(("begin", "more"), ENDLESS.values(), ids=ENDLESS)
def test_nothing_goes_on_for_ever(begin: bytes, more: bytes) -> None:
    """Whatever a server sends without end besides a body is refused after a while."""
    count = 2 * MAX_HEAD_BYTES // len(more)
    assert ours([begin, *[more] * count] if begin else [more] * count, ended=False) is None


def test_what_is_within_the_limits_is_read() -> None:
    """As many headers as may be, one as long as may be, as many interim answers as may be."""
    many = [(b"X%d" % number, b"") for number in range(MAX_FIELDS - 1)]
    long = (b"X", b"y" * (MAX_FIELD_BYTES - 1))
    for fields in (many, [long]):
        found = ours([OK + lines([*fields, (b"Content-Length", b"0")]) + b"\r\n"])
        assert found is not None
        assert found.complete
    found = ours([b"HTTP/1.1 103 Early Hints\r\n\r\n" * MAX_INTERIM + OK + b"\r\n"])
    assert found is not None
    assert found.status == 200


def test_a_long_header_that_comes_at_once_is_refused() -> None:
    """The limit holds for what is there, not only for what is waited for."""
    assert ours([OK + b"X: " + b"y" * MAX_FIELD_BYTES + b"\r\n\r\n"]) is None
    assert ours([OK + FULL * 5 + b"\r\n"]) is None
    assert ours([OK + b"X: y\r\n" * (MAX_FIELDS + 1) + b"\r\n"]) is None
