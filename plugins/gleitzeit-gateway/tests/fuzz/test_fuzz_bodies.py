"""Bodies of every kind: what is no request is the caller's mistake.

Each example goes to a live server over live sockets. The answer is always in the API's own envelope, never a 500 of
ours, never a trace in the log, never a hang; and no slot stays taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from .lab import MESSAGES, Lab, broken, check_answer, examples, send, shown

if TYPE_CHECKING:
    import logging
    from collections.abc import Iterator

    from gleitzeit_gateway.testing import RunningGateway

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]
TOOLS: Final = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]
CALLS: Final = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
PNG: Final = "iVBORw0KGgo="
BODIES: Final[dict[str, dict[str, Any]]] = {
    "/api/chat": {
        "messages": [
            *MESSAGES,
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
        ],
        "stream": False,
        "tools": TOOLS,
        "options": {"temperature": 0.5, "num_predict": 3, "stop": ["x"], "seed": 1},
        "format": "json",
        "think": False,
        "keep_alive": "5m",
        "logprobs": True,
        "top_logprobs": 1,
    },
    "/api/generate": {"prompt": "hi", "suffix": "", "system": "s", "raw": False, "stream": True, "images": [PNG]},
    "/api/embed": {"input": ["a", "b"], "truncate": True, "dimensions": 3},
    "/api/embeddings": {"prompt": "hi"},
    "/api/show": {"verbose": True},
    "/v1/chat/completions": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "hi"},
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
                ],
            },
            {"role": "assistant", "content": None, "tool_calls": CALLS},
            {"role": "tool", "tool_call_id": "c1", "content": "1"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "tools": TOOLS,
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
        "temperature": 0.5,
        "max_tokens": 5,
        "stop": ["x"],
        "n": 1,
        "logprobs": True,
        "top_logprobs": 1,
    },
    "/v1/completions": {"prompt": "hi", "suffix": "", "stream": False, "max_tokens": 5},
    "/v1/embeddings": {"input": "hi", "encoding_format": "base64", "dimensions": 3},
    "/v1/responses": {"input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}], "stream": False},
    "/v1/messages": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "1"}]},
        ],
        "max_tokens": 9,
        "system": [{"type": "text", "text": "s"}],
        "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "auto"},
        "stop_sequences": ["x"],
        "stream": True,
        "thinking": {"type": "disabled"},
    },
    "/v1/messages/count_tokens": {"messages": MESSAGES, "system": "s"},
    "/rpc": {"jsonrpc": "2.0", "id": 1, "method": "llm/chat", "params": {"model": "smollm2", "messages": MESSAGES}},
    "/api/copy": {"source": "smollm2", "destination": "other"},
    "/api/create": {"from": "smollm2", "stream": False},
    "/api/pull": {"stream": False, "insecure": True},
    "/admin/instances": {
        "url": "http://127.0.0.1:1",
        "weight": 2,
        "max_concurrent": 4,
        "tags": ["a"],
        "models": ["m"],
        "probe": False,
    },
}
PATHS: Final = tuple(BODIES)
# What stands in a body as it is, though Python's JSON would not write it.
RAW: Final = {
    "a number without end": "1" + "0" * 400,
    "a float without end": "1e999",
    "below all": "-1e999",
    "hardly anything": "1e-999",
    "a large integer": str(2**64),
    "a large negative one": str(-(2**63) - 1),
    "no number": "NaN",
    "half a pair": r'"\ud800"',
    "the other half": r'"x\udc00\udc00"',
    "zero": r'"\u0000"',
    "a deep list": "[" * 3000 + "]" * 3000,
    "a deep object": '{"a":' * 2000 + "1" + "}" * 2000,
    "twice": '{"role": "user", "role": "assistant", "content": "a", "content": 3}',
    "a long string": '"' + "x" * 70_000 + '"',
    "a bad escape": r'"\x"',
    "a control character": '"\x01"',
    "nothing": "",
}
VALUES: Final = st.one_of(
    st.sampled_from(
        [None, True, False, 0, -1, 1.5, 2**31, "", "x", [], {}, [[]], [None], {"": None}, "\u2028", "\ufeff"]
    ),
    st.sampled_from([f"@{name}@" for name in RAW]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    ),
)


def places(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:  # noqa: ANN401 - JSON
    """Where there is something in a body, from outside in."""
    yield here
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from places(part, (*here, key))


def replaced(value: Any, place: tuple[Any, ...], new: object) -> Any:  # noqa: ANN401 - JSON
    """A copy with something else in one place."""
    if not place:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = replaced(copy[place[0]], place[1:], new)
    return copy


def written(body: object) -> bytes:
    """As JSON, with what Python would not write."""
    text = json.dumps(body)
    for name, raw in RAW.items():
        text = text.replace(f'"@{name}@"', raw)
    return text.encode("utf-8", "surrogatepass")


def sound(path: str) -> dict[str, Any]:
    """A body in which nothing is wrong."""
    more = {} if path in ("/rpc", "/admin/instances", "/api/copy") else {"model": "smollm2"}
    return {**more, **BODIES[path]}


@st.composite
def wrong_inside(draw: st.DrawFn) -> tuple[str, bytes]:
    """A body with other values in one to three places, or with one more field."""
    path = draw(st.sampled_from(PATHS))
    body: Any = sound(path)
    for _ in range(draw(st.integers(1, 3))):
        if draw(st.integers(0, 9)) == 0 and isinstance(body, dict):
            body = {**body, draw(st.text(max_size=6)): draw(VALUES)}
        else:
            where = [place for place in places(body) if place[:1] != ("url",)]
            body = replaced(body, draw(st.sampled_from(where)), draw(VALUES))
    return path, written(body)


@examples(150, full=5000)
@given(case=wrong_inside())
@example(case=("/api/chat", b""))
def test_bodies_with_something_wrong_inside(lab: Lab, gateway: RunningGateway, case: tuple[str, bytes]) -> None:
    """A value of any kind in any place of any API's body is taken, or refused in that API's words."""
    path, body = case
    check_answer(path, lab.run(send(gateway, path, body)))


@examples(150, full=5000)
@given(data=st.data(), path=st.sampled_from([path for path in PATHS if not path.startswith("/admin/")]))
def test_bodies_that_are_damaged(lab: Lab, gateway: RunningGateway, data: st.DataObject, path: str) -> None:
    """So are bytes that are no body any more, or another one."""
    body = data.draw(st.one_of(broken(json.dumps(sound(path)).encode()), st.binary(max_size=64)))
    check_answer(path, lab.run(send(gateway, path, body)))


# Whole requests, of every form that a request's first line may have.
REQUESTS: Final = tuple(
    f"{line} HTTP/1.1\r\nHost: localhost:80\r\n{more}\r\n".encode() + body
    for line, more, body in [
        ("GET /health/live?a=b#c", "Accept: */*\r\nCookie: a=b; c=d\r\n", b""),
        (
            "GET http://user@[::1]:80/v1/models/a%2Fb%20c",
            "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n",
            b"",
        ),
        ("OPTIONS *", "Origin: http://localhost\r\nVia: 1.1 gleitzeit-1, 1.0 x\r\n", b""),
        ("CONNECT localhost:80", "Authorization: Bearer x\r\n", b""),
        (
            "POST /api/chat",
            "Content-Type: a/b; charset=x\r\nTransfer-Encoding: chunked\r\n",
            b"2;x=y\r\n{}\r\n0\r\nA: b\r\n\r\n",
        ),
        ("POST /rpc", "Content-Encoding: gzip\r\nContent-Length: 2\r\nExpect: 100-continue\r\n", b"{}"),
    ]
)


async def put(gateway: RunningGateway, sent: bytes) -> bytes:
    """Send bytes as they are, and what comes back until both sides have closed."""
    reader, writer = await gateway.connect()
    writer.write(sent)
    got = bytearray()
    with contextlib.suppress(ConnectionError, TimeoutError):
        # Half of a request is waited for.
        async with asyncio.timeout(0.02):
            while part := await reader.read(65536):
                got += part
    writer.transport.abort()
    await gateway.until(lambda: "0 requests" in repr(gateway.gateway))
    return bytes(got)


@examples(100, full=5000)
@given(data=st.data(), whole=st.sampled_from(REQUESTS))
def test_requests_that_are_damaged(
    lab: Lab, gateway: RunningGateway, log: list[logging.LogRecord], data: st.DataObject, whole: bytes
) -> None:
    """What is no HTTP any more is refused, or waited for; the next caller is served, and nobody hears of it."""
    got = lab.run(put(gateway, data.draw(broken(whole))))
    statuses = [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", got)]
    assert all(status < 500 or status in (501, 508) for status in statuses), got
    assert [shown(record) for record in log] == []


def test_every_wrong_value_once_in_every_field(lab: Lab, gateway: RunningGateway, *, full_size: bool) -> None:
    """Each of the worst values stands once in each field of each API: nothing of this is left to chance."""

    async def ask_all() -> None:
        for path in PATHS:
            for name in sound(path).keys() - {"url"}:
                for raw in (
                    RAW
                    if full_size or path in ("/api/chat", "/v1/chat/completions", "/v1/messages", "/rpc")
                    else ("half a pair",)
                ):
                    check_answer(path, await send(gateway, path, written({**sound(path), name: f"@{raw}@"})))

    lab.run(ask_all())


def test_nothing_was_logged_as_a_mistake(log: list[logging.LogRecord]) -> None:
    """After all these bodies the log has no trace; that of the streams below is looked at there."""
    assert [shown(record) for record in log] == []
