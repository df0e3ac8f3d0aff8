"""Same API on both sides: bytes pass unparsed, in whole lines or events, and are only watched.

Watched for three things: the final marker, without which an answer is incomplete, an error inside a stream that began
with status 200, and token counts. What tells of any of them has signs that almost no other line has, so hardly anything
is parsed. Nothing is ever cut in mid-line, so that an error of ours can follow at any point. How the bytes were cut on
their way makes no difference to what is given out and what is raised.

Whatever is given out counts as output, comments that keep a connection alive among it: the caller has seen it, so from
then on no other instance can take over.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_llm.dialects.errors import message_of
from gleitzeit_llm.dialects.lines import MAX_LINE_BYTES
from gleitzeit_llm.dialects.openai_encoder import DONE
from gleitzeit_llm.dialects.openai_wire import read_answer
from gleitzeit_llm.dialects.sse import EventBuffer
from gleitzeit_llm.protocol import UNREADABLE, UpstreamError
from gleitzeit_llm.usage import counted, of_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from gleitzeit_core.requests import Usage

_ANY_JSON: Final = msgspec.json.Decoder(msgspec.Raw)
# Of client APIs that no instance speaks.
_LAST_EVENTS: Final = (b"event: message_stop",)
# A CR at the very end may be half of what comes next.
_EVENT_ENDS: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r(?=[^\n]))")
_Sign: TypeAlias = tuple[bytes, re.Pattern[bytes]]
"""A few bytes that are found fast, and what to look for from there on: it begins with these bytes.

One pattern for several signs would be tried at every place, which takes ten times as long as all else.
"""
_ERROR_FIRST: Final = re.compile(rb'\s*\{\s*"error"')


class PassThrough:
    """Watches one stream.

    Args:
        dialect: ``ollama`` (NDJSON) or ``openai`` (server-sent events).
        max_bytes: The longest line or event that is waited for.
    """

    __slots__ = ("_format", "_held", "_max_bytes", "finished")

    def __init__(self, dialect: str, *, max_bytes: int = MAX_LINE_BYTES) -> None:
        self._format = _FORMATS[dialect]
        self._max_bytes = max_bytes
        self._held = bytearray()
        self.finished = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The whole lines or events there are now.

        Raises:
            InstanceFailure: The instance reported an error, or a line has no end.
        """
        whole, failure = self.take(data)
        if whole:
            yield whole
        if failure is not None:
            raise failure

    def take(self, data: bytes) -> tuple[bytes, InstanceFailure | None]:
        """The same at once: the whole lines or events there are now, if any, and what is to be raised after them."""
        held, usual = self._held, self._format
        # Nearly always what has come is whole: the usual end, and no more than that, stands at its end.
        if not held and data.endswith(usual.usual_end) and not data.endswith(usual.longer_ends):
            return self._watched(data)
        # The end of an event is at most four bytes long, and the last one was not there yet.
        look_from = max(0, len(held) - 3)
        held += data
        cut = self._format.last_end(held, look_from)
        whole, failure = b"", None
        if cut:
            whole = bytes(held[:cut])
            del held[:cut]
            whole, failure = self._watched(whole)
        if failure is None and len(held) > self._max_bytes:
            failure = _failure(f"the instance sent a line longer than {self._max_bytes} bytes")
        return whole, failure

    def close(self) -> Iterator[bytes]:
        """What is left at the end of the stream, if anything.

        Raises:
            InstanceFailure: As for `rest`.
        """
        rest = self.rest()
        if rest:
            yield rest

    def rest(self) -> bytes:
        """What is left at the end of the stream: a last line without its end, unless it is cut off.

        Raises:
            InstanceFailure: ``LOST``: the answer lacks its final marker; or the instance reported an error.
        """
        rest, failure = self._watched(bytes(self._held)) if self._held else (b"", None)
        self._held.clear()
        if failure is not None:
            raise failure
        if not self.finished:
            raise InstanceFailure(FailureKind.LOST, "the answer ended without its final marker: it is incomplete")
        return rest

    def _watched(self, whole: bytes) -> tuple[bytes, InstanceFailure | None]:
        """All of it; only what comes before an error, if there is one, and the error."""
        usual = self._format
        if not self.finished:
            if whole.endswith(usual.last) and not usual.has_error(whole):
                self.finished = True
            elif usual.is_suspicious(whole):
                begin = 0
                try:
                    for begin, end in usual.suspects(whole, usual.signs):
                        self.finished = usual.is_final(whole[begin:end])
                        if self.finished:
                            break
                except UpstreamError as error:
                    return whole[:begin], _failure(error.message)
        # Not `in`, which takes twice as long for bytes.
        return (whole if whole.find(usual.key) < 0 else counted(whole, usual.usage(whole))), None


@dataclass(frozen=True, slots=True)
class _Format:
    """How a stream is framed, and what to look for.

    Args:
        ends: The end of a line or an event.
        usual_end: The end that nearly all of them have.
        signs: What a line that is final or an error has in it, one of them; others may have it too. That of an error is
            the last.
        is_final: Whether a line or an event is final. Raises `UpstreamError` for one that is an error.
        key: What all lines with token counts have in them; found much faster than `counts`.
        counts: What else they have; others may have it too.
        data: The JSON in a line or an event. Raises `UpstreamError` where it is no such thing.
        last: What stands at the end of most streams: the end of an event, and one that is surely final. With that, and
            without an error before it, not one has to be read.
    """

    ends: re.Pattern[bytes]
    usual_end: bytes
    signs: tuple[_Sign, ...]
    is_final: Callable[[bytes], bool]
    key: bytes
    counts: tuple[_Sign, ...]
    data: Callable[[bytes], Iterable[bytes]]
    last: tuple[bytes, ...] = ()
    longer_ends: tuple[bytes, ...] = field(init=False)
    """The usual end with what would make another end of it."""

    def __post_init__(self) -> None:
        """Find out what is needed for every part."""
        object.__setattr__(self, "longer_ends", (b"\n" + self.usual_end, b"\r" + self.usual_end))

    def is_suspicious(self, whole: bytes) -> bool:
        """Whether anything in `whole` may be final or an error. Asked for every part."""
        for key, sign in self.signs:
            at = whole.find(key)
            if at >= 0 and sign.search(whole, at):
                return True
        return False

    def has_error(self, whole: bytes) -> bool:
        """Whether anything in `whole` may be an error."""
        key, sign = self.signs[-1]
        at = whole.find(key)
        return at >= 0 and sign.search(whole, at) is not None

    def suspects(self, whole: bytes, signs: tuple[_Sign, ...]) -> Iterator[tuple[int, int]]:
        """Where each line or event in `whole` that has one of these signs begins and ends."""
        first = _first(signs, whole, 0, len(whole))
        if first < 0:
            return
        # Many lines may come at once, and the last of them is the one that has a sign.
        begin = self.end_before(whole, first)
        for end in (*(end.end() for end in self.ends.finditer(whole, begin)), len(whole)):
            if _first(signs, whole, begin, end) >= 0:
                yield begin, end
            begin = end

    def usage(self, whole: bytes) -> Usage | None:
        """The last token counts in `whole`."""
        found = None
        with contextlib.suppress(UpstreamError):
            for begin, end in self.suspects(whole, self.counts):
                for data in self.data(whole[begin:end]):
                    found = of_json(data) or found
        return found

    def last_end(self, held: bytearray, look_from: int) -> int:
        """Where the last whole line or event in `held` ends; 0 when there is none from `look_from` on."""
        if held.endswith(self.usual_end) and _stands_alone(held, len(held) - len(self.usual_end)):
            return len(held)
        cut = 0
        for end in self.ends.finditer(held, look_from):
            cut = end.end()
        return cut

    def end_before(self, whole: bytes, at: int) -> int:
        """Some end of a line or an event before `at`, where possible the nearest; 0 when there is none that is sure."""
        found = whole.rfind(self.usual_end, 0, at)
        return found + len(self.usual_end) if found > 0 and _stands_alone(whole, found) else 0


def _first(signs: tuple[_Sign, ...], whole: bytes, begin: int, end: int) -> int:
    """Where the first of `signs` stands between two places; -1 for nowhere."""
    found = -1
    for key, sign in signs:
        at = whole.find(key, begin, end)
        if at >= 0 and (match := sign.search(whole, at, end)) and (found < 0 or match.start() < found):
            found = match.start()
    return found


def _stands_alone(data: bytes | bytearray, at: int) -> bool:
    """Whether what stands at `at` is no more than the end of something: nothing before it can be a part of that end."""
    return at > 0 and data[at - 1] not in b"\r\n"


class _Line(msgspec.Struct):
    done: Any = None
    error: Any = None


_LINE: Final = msgspec.json.Decoder(_Line)


def _is_final_line(line: bytes) -> bool:
    """Whether the line itself says so: the arguments of a tool call may have a ``done`` and an ``error`` too."""
    try:
        part = _LINE.decode(line)
    except UNREADABLE:
        return False
    if part.error is not None:
        raise UpstreamError(message_of(part.error) or "the instance reported an error without a text", reported=True)
    return part.done is True


def _data(event: bytes) -> Iterator[bytes]:
    return EventBuffer().feed(event + b"\n\n")


def _is_final_event(event: bytes) -> bool:
    """Whether it is ``[DONE]``, or the last but for the token counts: some servers leave ``[DONE]`` out."""
    try:
        for data in _data(event):
            if data.strip() == DONE or any(choice.finish_reason for choice in read_answer(data).choices or ()):
                return True
    except UpstreamError as error:
        if error.reported:
            raise
    return False


class _Event(msgspec.Struct):
    type: str = ""
    response: Any = None
    message: Any = None
    error: Any = None


_EVENT: Final = msgspec.json.Decoder(_Event)


def _is_last_response_event(event: bytes) -> bool:
    """Whether it tells the whole response. The arguments of a tool call are a text in which quotes are escaped."""
    found = _Event()
    with contextlib.suppress(*UNREADABLE, UpstreamError):
        for data in _data(event):
            found = _EVENT.decode(data)
    if found.error is not None or found.type in ("error", "response.failed"):
        message = next(filter(None, map(message_of, (found.error, found.message, found.response))), "")
        raise UpstreamError(message or "the instance reported an error without a text", reported=True)
    return found.type in ("response.completed", "response.incomplete")


# A quote inside a JSON string is escaped, so what looks like a key is one, at whatever depth.
_FORMATS: Final[Mapping[str, _Format]] = {
    "ollama": _Format(
        ends=re.compile(rb"\n"),
        usual_end=b"\n",
        signs=((b'"done"', re.compile(rb'"done"\s*:\s*true')), (b'"error"', re.compile(rb'"error"\s*:'))),
        is_final=_is_final_line,
        key=b'eval_count"',
        counts=((b"eval_count", re.compile(rb'eval_count"\s*:')),),
        data=lambda line: (line,),
    ),
    "openai": _Format(
        ends=_EVENT_ENDS,
        usual_end=b"\n\n",
        signs=(
            (b"[DONE]", re.compile(rb"\[DONE\]")),
            (b'"finish_reason"', re.compile(rb'"finish_reason"\s*:\s*"')),
            (b"error", re.compile(rb'error(?::|(?<="error)")')),
        ),
        is_final=_is_final_event,
        key=b'"prompt_',
        # Of a usage, or of llama.cpp's timings. A chunk without counts may have a null for a usage.
        counts=((b'"prompt_', re.compile(rb'"prompt_(?:tokens|n)"\s*:')),),
        data=_data,
        last=(b"\n\ndata: [DONE]\n\n",),
    ),
    "openai-responses": _Format(
        ends=_EVENT_ENDS,
        usual_end=b"\n\n",
        signs=(
            (b'"type"', re.compile(rb'"type"\s*:\s*"(?:response\.(?:completed|incomplete|failed)|error)"')),
            (b'"error"', re.compile(rb'"error"\s*:\s*[{"]')),
        ),
        is_final=_is_last_response_event,
        key=b'"input_tokens"',
        counts=((b'"input_tokens"', re.compile(rb'"input_tokens"\s*:')),),
        data=_data,
    ),
}


def is_final(dialect: str, part: object) -> bool:
    """Whether a part of an answer, in a client API or canonical, is one after which nothing of interest comes."""
    if isinstance(part, dict):
        return part.get("done") is True
    if not isinstance(part, bytes):
        return part is not None
    if dialect in _FORMATS:
        watched = PassThrough(dialect)
        with contextlib.suppress(InstanceFailure):
            for _ in watched.feed(part):
                pass
        return watched.finished
    return any(sign in part for sign in _LAST_EVENTS)


def check_whole(body: bytes) -> None:
    """See that a whole answer with status 200 is not an error.

    Raises:
        InstanceFailure: It is.
    """
    if _ERROR_FIRST.match(body):
        try:
            _is_final_line(body)
        except UpstreamError as error:
            raise _failure(error.message) from None


def check_object(body: bytes) -> None:
    """See that a whole answer is a JSON object with nothing missing: it is looked over, and not taken apart.

    Raises:
        InstanceFailure: It is cut off, something else, or no JSON at all.
    """
    try:
        if bytes(memoryview(_ANY_JSON.decode(body))[:1]) == b"{":
            return
    except UNREADABLE as error:
        raise _failure(f"the instance sent an answer that is no whole JSON: {error}") from None
    raise _failure("the instance sent an answer that is no JSON object")


def _failure(message: str) -> InstanceFailure:
    return InstanceFailure(FailureKind.SERVER_ERROR, message)
