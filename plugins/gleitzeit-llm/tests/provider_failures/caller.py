"""Servers that fail as a test says, and a caller who tells what becomes of a request there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import InstanceFailure
from gleitzeit_llm.provider import RawAnswer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from gleitzeit_core.requests import Request

    Line = Any
    Handler = Callable[[Line], Awaitable[None]]

NDJSON, SSE, JSON = "application/x-ndjson", "text/event-stream", "application/json"
MESSAGES = [{"role": "user", "content": "hi"}]
PATHS = {"ollama": "/api/chat", "openai": "/v1/chat/completions"}
TYPES = {"ollama": NDJSON, "openai": SSE}
PART = {
    "ollama": b'{"model":"smollm2","message":{"role":"assistant","content":"hi"},"done":false}\n',
    "openai": b'data: {"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":null}]}\n\n',
}
END = {
    "ollama": b'{"model":"smollm2","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop"}\n',
    "openai": b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n',
}
ERROR = {
    "ollama": b'{"error":"out of memory"}\n',
    "openai": b'data: {"error":{"message":"out of memory"}}\n\n',
}
WHOLE = {
    "ollama": b'{"model":"smollm2","message":{"role":"assistant","content":"hi"},"done":true,"done_reason":"stop"}',
    "openai": b'{"choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}',
}
PAGE = b"<html><body><h1>502 Bad Gateway</h1></body></html>"
ENVELOPE = {
    "ollama": b'{"error":"no room for this"}',
    "openai": b'{"error":{"message":"no room for this","type":"api_error"}}',
}

# How a request reaches an instance that speaks `api`: as the bytes of a client API, or as parameters.
WAYS = [
    pytest.param("ollama", "ollama", id="ollama to ollama"),
    pytest.param("openai", "openai", id="openai to openai"),
    pytest.param("ollama", "openai", id="ollama to openai"),
    pytest.param("openai", "ollama", id="openai to ollama"),
    pytest.param("", "ollama", id="library to ollama"),
    pytest.param("", "openai", id="library to openai"),
]
ways = pytest.mark.parametrize(("dialect", "api"), WAYS)


def streaming(kind: str, *chunks: bytes, how: str = "end") -> Handler:
    """A server that answers with these chunks and then ends the body, closes, or resets."""

    async def handle(line: Line) -> None:
        while True:
            await line.request()
            line.begin(kind)
            for chunk in chunks:
                line.chunk(chunk)
            if how != "end":
                await line.flush()
                getattr(line, how)()
                return
            line.chunk(b"")

    return handle


def answering(body: bytes, status: str = "200 OK", kind: str = JSON, more: str = "") -> Handler:
    """A server that answers whole."""

    async def handle(line: Line) -> None:
        while True:
            await line.request()
            line.answer(body, status=status, kind=kind, more=more)

    return handle


class Caller:
    """Sends one kind of request to a pool, in one way, and tells what happened."""

    def __init__(self, pool: Any, dialect: str) -> None:  # noqa: ANN401 - a pool
        self.pool, self.dialect = pool, dialect

    def request(self, *, stream: bool, **fields: object) -> Request:
        """A chat."""
        params = {"model": "smollm2", "messages": MESSAGES, **fields}
        if not self.dialect:
            made: Request = self.pool.provider.request("llm/chat", params).changed(stream=stream)
            return made
        body = json.dumps({**params, "stream": stream}).encode()
        sent: Request = self.pool.provider.raw_request(self.dialect, PATHS[self.dialect], body)
        return sent

    async def whole(self, **fields: object) -> Any:  # noqa: ANN401 - an answer
        """A whole answer: the text it says."""
        request = self.request(stream=False, **fields)
        value = (await self.pool.dispatcher.one(self.pool.provider, request)).value
        return value.body if isinstance(value, RawAnswer) else value["message"]["content"].encode()

    async def parts(self, **fields: object) -> AsyncIterator[bytes]:
        """The parts of a stream, as bytes."""
        stream = self.pool.dispatcher.stream(self.pool.provider, self.request(stream=True, **fields))
        async with stream:
            async for part in stream:
                yield part if isinstance(part, bytes) else json.dumps(part).encode()

    async def failure(self, *, stream: bool, **fields: object) -> tuple[bytes, InstanceFailure]:
        """What came out before it failed, and how it failed."""
        out: list[bytes] = []
        with pytest.raises(InstanceFailure) as caught:
            await self.sent(out, stream=stream, **fields)
        return b"".join(out), caught.value

    async def sent(self, out: list[bytes], *, stream: bool, **fields: object) -> None:
        """Send a request, and put into `out` what comes out."""
        if not stream:
            out.append(await self.whole(**fields))
            return
        async for part in self.parts(**fields):
            out.append(part)  # noqa: PERF401 - what came before a failure counts

    def outcome(self, url: str) -> list[str]:
        """How tries on the instance at `url` ended."""
        report = next(r for r in self.pool.dispatcher.reports() if r.instance.endpoint == url)
        results = self.pool.dispatcher.metrics.sum(instance_id=report.instance.id).results
        return [f"{count} {result}" for result, count in sorted(results.items())]


Call = Any
