"""A fake server of both APIs that costs next to nothing: ``fast_server.py PORT CHUNKS MODEL``.

Whatever is asked, it answers with one short chat completion, or with a stream of it in so many chunks, each of them
written by itself and the loop turned between them.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Final

import httptools
import uvloop

CHUNKS, MODEL = int(sys.argv[2]), sys.argv[3]
_TEXT: Final = "Hello there, this is a small answer."


def _whole(kind: str, body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b" % (kind.encode(), len(body), body)


def _chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


def _completion() -> bytes:
    message = {"role": "assistant", "content": _TEXT}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 5, "completion_tokens": 9, "total_tokens": 14}
    found = {"id": "c", "object": "chat.completion", "created": 1, "model": MODEL, "choices": [choice], "usage": usage}
    return json.dumps(found, separators=(",", ":")).encode()


def _parts() -> list[bytes]:
    def event(delta: dict[str, str], reason: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        part = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": [choice]}
        return _chunk(b"data: " + json.dumps(part, separators=(",", ":")).encode() + b"\n\n")

    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    middle = [event({"content": f"tok{number}"}, None) for number in range(CHUNKS - 2)]
    return [head, *middle, event({}, "stop"), _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"]


_LISTS: Final = {
    b"/v1/models": {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 1, "owned_by": "x"}]},
    b"/api/version": {"version": "0.24.0"},
}
_ANSWERS: Final = {path: _whole("application/json", json.dumps(value).encode()) for path, value in _LISTS.items()}
_COMPLETION: Final = _whole("application/json", _completion())
_STREAM: Final = _parts()


class Server(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        """Nothing has come."""
        self._body, self._path = b"", b""
        self._transport: asyncio.Transport
        self._parser = httptools.HttpRequestParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Some of a request."""
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        """Its path."""
        self._path, self._body = url, b""

    def on_body(self, data: bytes) -> None:
        """Some of its body."""
        self._body += data

    def on_message_complete(self) -> None:
        """All of it."""
        if b'"stream":true' in self._body or b'"stream": true' in self._body:
            self._send(0)
        else:
            self._transport.write(_ANSWERS.get(self._path, _COMPLETION))

    def _send(self, at: int) -> None:
        if not self._transport.is_closing():
            self._transport.write(_STREAM[at])
            if at + 1 < len(_STREAM):
                asyncio.get_running_loop().call_soon(self._send, at + 1)


async def main() -> None:
    """Serve until killed."""
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", int(sys.argv[1]), backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
