"""What may go wrong with a server, each as a small object that a test hands to the script.

Nothing here sleeps: a fault that holds a request says by one event that it does, and lets go at
another. A fault of your own is a subclass of `Fault` that overrides one of its methods.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from gleitzeit_ollama.testing.answers import JSON, Plain
from gleitzeit_ollama.testing.golang import dumps
from gleitzeit_ollama.testing.runners import QueueFull

if TYPE_CHECKING:
    from gleitzeit_ollama.testing.exchange import Exchange


@dataclass(frozen=True, slots=True)
class Cut:
    """A verdict: the connection is closed under the client, by RST or by FIN."""

    reset: bool = False


@dataclass(frozen=True, slots=True)
class End:
    """A verdict: the body ends here, cleanly; with an error line before the end if one is given.

    It counts for streams only; what becomes of a plain answer says `Fault.on_plain`.
    """

    error: str | None = None


Verdict = Cut | End | None


@dataclass(frozen=True, slots=True)
class Fault:
    """The base of all faults; by itself it does nothing.

    A plain answer (not a stream) has two parts, the halves of its body.
    """

    def on_plain(self, exchange: Exchange, answer: Plain) -> Plain:
        """Return what is sent in place of a plain answer whose length is told beforehand."""
        del exchange
        return answer

    async def on_request(self, exchange: Exchange) -> Plain | Cut | None:
        """Answer in place of the endpoint, or None; the body was read, no slot is taken."""

    async def on_slot(self, exchange: Exchange) -> None:
        """Act when the request has its slot, before any header is sent."""

    async def on_part(self, exchange: Exchange, sent: int) -> Verdict:
        """Judge before each part, and once after the last; `sent` parts are out."""


@dataclass(frozen=True, slots=True)
class Status(Fault):
    """Answers with a status.

    Args:
        code: HTTP status.
        body: bytes or text as they are, or an object sent as JSON.
        headers: further headers; a Content-Type among them replaces the usual one.
    """

    code: int = 500
    body: bytes | str | Mapping[str, object] = field(default_factory=lambda: {"error": "something went wrong"})
    headers: Mapping[str, str] = field(default_factory=dict)

    async def on_request(self, exchange: Exchange) -> Plain:
        """Answer at once."""
        del exchange
        body, kind = self.body, "text/plain; charset=utf-8"
        if isinstance(body, Mapping):
            body, kind = dumps(body), JSON
        raw = body.encode() if isinstance(body, str) else body
        return Plain(self.code, raw, kind, self.headers)


@dataclass(frozen=True, slots=True)
class Busy(Fault):
    """Answers 503 as a server with a full queue does.

    Args:
        retry_after_s: sent as `Retry-After`; None, as recorded, for no such header.
    """

    retry_after_s: int | None = None

    async def on_request(self, exchange: Exchange) -> Plain:
        """Answer at once."""
        after = self.retry_after_s
        headers = {} if after is None else {"Retry-After": str(after)}
        return exchange.refusal(503, str(QueueFull()), headers)


@dataclass(frozen=True, slots=True)
class Unauthorized(Fault):
    """Answers 401, as a proxy that wants a key does."""

    async def on_request(self, exchange: Exchange) -> Plain:
        """Answer at once."""
        return exchange.refusal(401, "unauthorized", {})


@dataclass(frozen=True, slots=True)
class Garbage(Fault):
    """Answers with what is no API's answer, such as the page of a proxy.

    Args:
        body: text or bytes.
        content_type: of the body.
        code: HTTP status; 200 is the nastiest.
    """

    body: bytes | str = "<html><body><h1>Welcome to nginx!</h1></body></html>"
    content_type: str = "text/html"
    code: int = 200

    async def on_request(self, exchange: Exchange) -> Plain:
        """Answer at once."""
        del exchange
        body = self.body.encode() if isinstance(self.body, str) else self.body
        return Plain(self.code, body, self.content_type)


@dataclass(frozen=True, slots=True)
class Holding(Fault):
    """The base of faults that hold a request.

    Args:
        reached: set when a request is held.
        released: set it to let go, now and later; `server.release()` sets it too.
    """

    reached: asyncio.Event = field(default_factory=asyncio.Event, compare=False, repr=False, kw_only=True)
    released: asyncio.Event = field(default_factory=asyncio.Event, compare=False, repr=False, kw_only=True)

    async def hold(self, exchange: Exchange) -> None:
        """Stay here until released; a client that leaves ends it too."""
        self.reached.set()
        await exchange.server.hold(self.released)


@dataclass(frozen=True, slots=True)
class Hang(Holding):
    """Accepts the request and answers nothing until released, then as usual; no slot is taken."""

    async def on_request(self, exchange: Exchange) -> None:
        """Stay here until released."""
        await self.hold(exchange)


@dataclass(frozen=True, slots=True)
class HangBeforeHeaders(Holding):
    """Takes a slot and sends no header until released, then goes on as usual."""

    async def on_slot(self, exchange: Exchange) -> None:
        """Stay here until released."""
        await self.hold(exchange)


@dataclass(frozen=True, slots=True)
class SlowLoad(Fault):
    """Makes the model count as not loaded: nobody's answer begins until its load is done.

    Args:
        event: set it to finish the load.
    """

    event: asyncio.Event = field(default_factory=asyncio.Event, compare=False, repr=False)

    async def on_request(self, exchange: Exchange) -> None:
        """Let the load of the request's model wait for the event."""
        exchange.server.hold_load(exchange.record.model, self.event)


@dataclass(frozen=True, slots=True)
class StallAfter(Holding):
    """Sends headers and this many parts, then nothing until released, then the rest."""

    n_parts: int = 0

    async def on_part(self, exchange: Exchange, sent: int) -> None:
        """Stay here until released, once the parts are out."""
        if sent == self.n_parts:
            await self.hold(exchange)


@dataclass(frozen=True, slots=True)
class DropBeforeHeaders(Fault):
    """Closes the connection without a word.

    Args:
        reset: by RST; otherwise by FIN.
    """

    reset: bool = False

    async def on_request(self, exchange: Exchange) -> Cut:
        """Close at once."""
        del exchange
        return Cut(self.reset)


@dataclass(frozen=True, slots=True)
class DropAfter(Fault):
    """Sends headers and this many parts, then closes the connection in mid-body.

    Args:
        n_parts: parts that are sent.
        reset: by RST, which may overtake parts the client has not read; otherwise by FIN.
    """

    n_parts: int = 0
    reset: bool = False

    async def on_part(self, exchange: Exchange, sent: int) -> Verdict:
        """Close once the parts are out."""
        del exchange
        return Cut(self.reset) if sent == self.n_parts else None


@dataclass(frozen=True, slots=True)
class TruncateAfter(Fault):
    """Sends this many parts and ends the body cleanly, without its final marker."""

    n_parts: int = 0

    def on_plain(self, exchange: Exchange, answer: Plain) -> Plain:
        """Send that many halves of the body, with a length that fits."""
        del exchange
        return replace(answer, body=b"".join(answer.halves()[: self.n_parts]))

    async def on_part(self, exchange: Exchange, sent: int) -> Verdict:
        """End once the parts are out."""
        del exchange
        return End() if sent == self.n_parts else None


@dataclass(frozen=True, slots=True)
class ErrorLineAfter(Fault):
    """Sends this many parts, then an error in the stream, and ends it; status 200 is out by then.

    A plain answer becomes a 500 with the same error. Under `/v1` the error is an event
    `data: {"error": {...}}`, as most OpenAI servers send it; the real Ollama sends an empty chunk
    there and ends, for which `TruncateAfter` stands well enough.
    """

    n_parts: int = 0
    error: str = "an error was encountered while running the model"

    def on_plain(self, exchange: Exchange, answer: Plain) -> Plain:
        """Refuse with the error."""
        del answer
        return exchange.refusal(500, self.error, {})

    async def on_part(self, exchange: Exchange, sent: int) -> Verdict:
        """End with an error once the parts are out."""
        del exchange
        return End(self.error) if sent == self.n_parts else None
