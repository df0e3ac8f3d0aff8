"""Streams of every kind: what is no answer is the instance's mistake.

Each example comes from a live server over live sockets. The answer is always in the API's own envelope, never a 500 of
ours, never a trace in the log, never a hang; and no slot stays taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Final, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .lab import MESSAGES, Lab, broken, check_answer, examples, send, shown

if TYPE_CHECKING:
    import logging

    from gleitzeit_gateway.testing import Answered, RunningGateway

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]
OLLAMA_LINE: Final = {
    "model": "smollm2",
    "created_at": "2024-01-02T03:04:05Z",
    "message": {"role": "assistant", "content": "hi"},
    "done": False,
}
NDJSON: Final = b"".join(
    json.dumps(line).encode() + b"\n"
    for line in [
        OLLAMA_LINE,
        OLLAMA_LINE,
        {**OLLAMA_LINE, "done": True, "done_reason": "stop", "eval_count": 2, "prompt_eval_count": 3},
    ]
)
CHUNK: Final = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "smollm2"}
SSE: Final = b"".join(
    b"data: " + part + b"\n\n"
    for part in [
        json.dumps({**CHUNK, "choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": None}]}).encode(),
        json.dumps({**CHUNK, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}).encode(),
        b"[DONE]",
    ]
)
WHOLE: Final = json.dumps({**OLLAMA_LINE, "done": True, "done_reason": "stop"}).encode()
STREAMS: Final = (
    NDJSON,
    SSE,
    WHOLE,
    b'{"error": "oh"}\n',
    NDJSON + b'{"error": "oh"}\n',
    b"<html><body>hello</body></html>",
    b"",
)
TYPES: Final = (
    "application/x-ndjson",
    "text/event-stream",
    "application/json",
    "text/html",
    "",
    "nonsense",
    "application/json; charset=utf-16",
)
END_SIGNS: Final = (b'"done":true', b'"done": true', b"[DONE]", b"finish_reason", b"message_stop", b"stop_reason")


class Speaker:
    """A server that says exactly what it is told to, in these parts, and then closes.

    Attributes:
        parts: What it says to the next callers.
    """

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self._server: asyncio.Server
        self.url = ""

    async def __aenter__(self) -> Self:
        """Listen."""
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.url = "http://{}:{}".format(*self._server.sockets[0].getsockname())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close."""
        self._server.close()
        await self._server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0] or 0)
            await reader.readexactly(size)
            for part in self.parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
        writer.close()


@pytest.fixture(scope="module")
def speaker(lab: Lab) -> Speaker:
    """One that runs."""

    async def start() -> Speaker:
        found = Speaker()
        await lab._stack.enter_async_context(found)
        return found

    found: Speaker = lab.run(start())
    return found


@pytest.fixture(scope="module")
def misled(lab: Lab, speaker: Speaker) -> RunningGateway:
    """A gateway over that one."""
    return lab.gateway(speaker.url, models=["smollm2"], probe=False)


@st.composite
def answers(draw: st.DrawFn) -> list[bytes]:
    """All that a server says, in parts."""
    body = draw(st.sampled_from(STREAMS))
    if draw(st.booleans()):
        body = draw(broken(body))
    # 401, 403, 429 and 503 put an instance out of service, which is tested elsewhere.
    status = draw(st.sampled_from([200] * 8 + [100, 201, 204, 302, 304, 400, 404, 500, 599, 999]))
    kind = draw(st.sampled_from(TYPES))
    lines = [f"HTTP/1.1 {status} What", *([f"Content-Type: {kind}"] if kind else [])]
    framing = draw(st.sampled_from(["length", "chunked", "close", "too long", "too short", "no length at all", "both"]))
    if framing in ("chunked", "both"):
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        lines.append("Transfer-Encoding: chunked")
    wrong = {"length": 0, "too long": 7, "too short": -7, "both": 0}
    if framing in wrong:
        lines.append(f"Content-Length: {max(0, len(body) + wrong[framing])}")
    if framing == "no length at all":
        lines.append("Content-Length: many")
    said = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
    if draw(st.integers(0, 5)) == 0:
        said = draw(broken(said))
    cuts = sorted(draw(st.lists(st.integers(0, len(said)), max_size=6)))
    return [said[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(said)], strict=True)]


def claims_to_be_complete(answered: Answered, *, stream: bool) -> bool:
    """Whether an answer looks like one."""
    if not stream or answered.headers["Content-Type"].startswith("application/json"):
        return isinstance(answered.json, dict)
    return any(sign in answered.body for sign in END_SIGNS)


@examples(60, full=3000)
@given(
    parts=answers(),
    path=st.sampled_from(["/api/chat", "/v1/chat/completions", "/v1/messages"]),
    stream=st.booleans(),
)
def test_answers_that_are_none(
    lab: Lab, misled: RunningGateway, speaker: Speaker, parts: list[bytes], path: str, *, stream: bool
) -> None:
    """Whatever a server says, and however it is cut, a caller gets an answer, or hears in its API that there is none."""
    speaker.parts = parts
    body = {
        "model": "smollm2",
        "stream": stream,
        "messages": MESSAGES,
        **({"max_tokens": 9} if "messages" in path else {}),
    }
    answered = lab.run(send(misled, path, json.dumps(body).encode()))
    check_answer(path, answered)
    if answered.status == 200 and answered.complete:
        assert claims_to_be_complete(answered, stream=stream), answered


def test_nothing_was_logged_as_a_mistake_of_ours(log: list[logging.LogRecord]) -> None:
    """After all these answers the log has no trace, either."""
    assert [shown(record) for record in log] == []
