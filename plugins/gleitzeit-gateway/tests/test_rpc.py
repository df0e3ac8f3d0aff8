"""JSON-RPC 2.0: every method of every provider, whole or in parts, with an error for everything that is not right."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_ollama.testing import Gate, Hang, HangBeforeHeaders, OllamaServer, Status, TruncateAfter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from gleitzeit_gateway.testing import Answered, RunningGateway

    Serve = Callable[..., Awaitable[RunningGateway]]

PARAMS = {"model": "smollm2", "messages": [{"role": "user", "content": "hi"}]}
ODD_PROVIDER = '''
"""A provider whose answers are odd; loaded as a single-file plugin."""

from gleitzeit_core.hookspecs import ProviderType, hookimpl
from gleitzeit_core.hub_provider import HubProvider, PoolOptions
from gleitzeit_core.requests import Method


class Odd(HubProvider[PoolOptions]):
    protocol = "odd"
    options_type = PoolOptions
    methods = (
        Method(name="odd/object", summary="no JSON", replayable=False, streams=True),
        Method(name="odd/nothing", summary="no part", replayable=False, streams=True),
        Method(name="odd/fails", summary="fails after a part", replayable=False, streams=True),
    )

    async def create_resource(self, config):
        return object()

    async def execute_on_resource(self, instance, method, params):
        return object()

    async def stream_on_resource(self, instance, method, params):
        if method == "odd/nothing":
            return
        yield 1
        if method == "odd/fails":
            raise ValueError("it broke")
        yield object()


@hookimpl
def gleitzeit_register_providers():
    return [ProviderType(name="odd", target=f"{__name__}:Odd", options=f"{__name__}:PoolOptions", summary="odd")]
'''


async def call(gateway: RunningGateway, method: object = "llm/chat", params: object = None, **more: object) -> Answered:
    """One call."""
    message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": PARAMS if params is None else params, **more}
    return await gateway.ask("/rpc", message)


def error_of(answered: Answered, request_id: object = 1) -> dict[str, Any]:
    """The error of a call, in the shape that JSON-RPC gives it."""
    assert answered.status == 200
    message: dict[str, Any] = answered.json
    assert message.keys() == {"jsonrpc", "id", "error"}
    assert (message["jsonrpc"], message["id"]) == ("2.0", request_id)
    error: dict[str, Any] = message["error"]
    assert error.keys() == {"code", "message", "data"}
    assert {"code", "message", "retryable"} <= error["data"].keys()
    return error


# -- whole answers -------------------------------------------------------------------------------------------------


async def test_call(serve: Serve, ollama: OllamaServer) -> None:
    """A call is answered with its id and its result, and the headers name who served."""
    gateway = await serve(ollama)
    answered = await call(gateway, id="abc")
    assert answered.status == 200
    assert answered.headers["Content-Type"] == "application/json"
    assert answered.json.keys() == {"jsonrpc", "id", "result"}
    assert answered.json["id"] == "abc"
    assert answered.json["result"]["message"]["content"] == "You said: hi"
    assert answered.headers["X-Gleitzeit-Instance"].startswith("ollama-")
    assert answered.headers["X-Gleitzeit-Tries"] == "1"


async def test_call_that_needs_no_instance(serve: Serve, ollama: OllamaServer) -> None:
    """What the gateway knows by itself names no instance."""
    gateway = await serve(ollama)
    answered = await call(gateway, "llm/models", {})
    assert [model["name"] for model in answered.json["result"]["models"]] == ["smollm2:latest"]
    assert "X-Gleitzeit-Instance" not in answered.headers


@pytest.mark.parametrize("request_id", [0, 1.5, "", "x", None])
async def test_id_comes_back(serve: Serve, ollama: OllamaServer, request_id: object) -> None:
    """Whatever an id may be comes back as it was."""
    gateway = await serve(ollama)
    assert (await call(gateway, "llm/models", {}, id=request_id)).json["id"] == request_id


async def test_notification(serve: Serve, ollama: OllamaServer) -> None:
    """A call without an id is carried out and gets no answer."""
    gateway = await serve(ollama)
    answered = await gateway.ask("/rpc", {"jsonrpc": "2.0", "method": "llm/chat", "params": PARAMS})
    assert (answered.status, answered.body) == (204, b"")
    assert [record.path for record in ollama.requests if record.method == "POST"] == ["/api/chat"]


@pytest.mark.parametrize(
    ("method", "params", "code"),
    [("llm/chat", PARAMS, "rejected"), ("llm/caht", {}, "unknown_method"), ("llm/chat", [], "invalid_request")],
)
async def test_notification_that_fails(
    serve: Serve,
    ollama: OllamaServer,
    caplog: pytest.LogCaptureFixture,
    method: str,
    params: object,
    code: str,
) -> None:
    """Nor does it get an error, as JSON-RPC has it; the access line has the error."""
    caplog.set_level("INFO", "gleitzeit.access")
    gateway = await serve(ollama, access_log=True)
    ollama.script.always(Status(400))
    answered = await gateway.ask("/rpc", {"jsonrpc": "2.0", "method": method, "params": params})
    assert (answered.status, answered.body) == (204, b"")
    assert caplog.messages[-1].endswith(f"error={code}")


NO_CALLS = {
    "no object": (1, "expected a call, as an object", None),
    "nothing": (b"null", "expected a call, as an object", None),
    "no version": ({"id": 1, "method": "llm/models"}, "'jsonrpc' must be \"2.0\"", 1),
    "a wrong version": ({"jsonrpc": 2.0, "id": 1, "method": "x"}, "'jsonrpc' must be \"2.0\"", 1),
    "no method": ({"jsonrpc": "2.0", "id": 1}, "'method' must be a string", 1),
    "a word for params": ({"jsonrpc": "2.0", "id": 1, "method": "x", "params": "y"}, "'params' must be an object", 1),
    "null for params": ({"jsonrpc": "2.0", "id": 1, "method": "x", "params": None}, "'params' must be an object", 1),
    "an object as id": ({"jsonrpc": "2.0", "id": {}, "method": "x"}, "'id' must be a string, a number or null", None),
    "true as id": ({"jsonrpc": "2.0", "id": True, "method": "x"}, "'id' must be a string, a number or null", None),
    "a word for stream": (
        {"jsonrpc": "2.0", "id": 1, "method": "x", "stream": "y"},
        "'stream' must be true or false",
        1,
    ),
    "a stream for nobody": ({"jsonrpc": "2.0", "method": "x", "stream": True}, "'stream' needs an 'id'", None),
    "no time": ({"jsonrpc": "2.0", "id": 1, "method": "x", "timeout_s": 0}, "'timeout_s' must be a number above 0", 1),
    "a word for time": ({"jsonrpc": "2.0", "id": 1, "method": "x", "timeout_s": "1"}, "'timeout_s' must be", 1),
}


@pytest.mark.parametrize(("message", "words", "request_id"), NO_CALLS.values(), ids=NO_CALLS)
async def test_what_is_no_call(
    serve: Serve, ollama: OllamaServer, message: object, words: str, request_id: object
) -> None:
    """What is no call says which part of it is wrong: -32600."""
    gateway = await serve(ollama)
    error = error_of(await gateway.ask("/rpc", message, verb="POST"), request_id)
    assert error["code"] == -32600
    assert words in error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b'{"a": NaN}'])
async def test_what_is_no_json(serve: Serve, ollama: OllamaServer, body: bytes) -> None:
    """What is no JSON: -32700."""
    gateway = await serve(ollama)
    assert error_of(await gateway.ask("/rpc", body, verb="POST"), None)["code"] == -32700


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_errors(serve: Serve, ollama: OllamaServer, *, stream: bool) -> None:
    """Each error has JSON-RPC's number for it, and our own code and words."""
    gateway = await serve(ollama)
    error = error_of(await call(gateway, "llm/caht", stream=stream))
    assert (error["code"], error["data"]["code"]) == (-32601, "unknown_method")
    assert "did you mean 'llm/chat'?" in error["message"]
    error = error_of(await call(gateway, "nobody/knows", stream=stream))
    assert (error["code"], error["data"]["code"]) == (-32601, "unknown_method")
    error = error_of(await call(gateway, params={"messages": []}, stream=stream))
    assert (error["code"], error["data"]["code"]) == (-32602, "invalid_request")
    assert error["data"]["param"] == "model"
    error = error_of(await call(gateway, params=["smollm2"], stream=stream))
    assert (error["code"], error["data"]["param"]) == (-32602, "params")
    assert "by name" in error["message"]
    error = error_of(await call(gateway, params={**PARAMS, "model": "nope"}, stream=stream))
    assert (error["code"], error["data"]["code"]) == (-32000, "no_capable_instance")
    ollama.script.next(Status(500))
    error = error_of(await call(gateway, stream=stream))
    assert (error["code"], error["data"]["code"]) == (-32000, "instance_failure")
    assert error["data"]["kind"] == "server_error"
    assert error["data"]["retryable"] is True
    assert "something went wrong" in error["message"]


async def test_queue_full(serve: Serve, ollama: OllamaServer) -> None:
    """A full queue says when to come back."""
    gateway = await serve(ollama, hub={"max_concurrent": 1}, route={"max_queue": 0})
    ollama.script.next(hang := HangBeforeHeaders())
    running = asyncio.create_task(call(gateway))
    async with asyncio.timeout(20):
        await hang.reached.wait()
        error = error_of(await call(gateway))
        hang.released.set()
        assert "result" in (await running).json
    assert (error["code"], error["data"]["code"]) == (-32000, "queue_full")
    assert error["data"]["retry_after_s"] >= 1


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_timeout(serve: Serve, ollama: OllamaServer, *, stream: bool) -> None:
    """A call may bring a time limit of its own."""
    gateway = await serve(ollama)
    ollama.script.next(Hang())
    error = error_of(await call(gateway, stream=stream, timeout_s=0.1))
    assert error["data"]["code"] == "deadline_exceeded"


async def test_method_without_parts(serve: Serve, ollama: OllamaServer) -> None:
    """A method that has no parts says so."""
    gateway = await serve(ollama)
    error = error_of(await call(gateway, "llm/embed", {"model": "smollm2", "input": "x"}, stream=True))
    assert error["code"] == -32602


# -- in parts ------------------------------------------------------------------------------------------------------


async def test_parts(serve: Serve, ollama: OllamaServer) -> None:
    """With ``stream`` the parts come as lines while they are made, and the last line says that it was all."""
    ollama.gate = gate = Gate(tokens=1)
    gateway = await serve(ollama)
    begun = asyncio.Event()
    message = {"jsonrpc": "2.0", "id": 1, "method": "llm/chat", "params": PARAMS, "stream": True}
    asked = asyncio.create_task(gateway.ask("/rpc", message, begun=begun.set))
    async with asyncio.timeout(20):
        await begun.wait()
        gate.open()
        answered = await asked
    assert answered.headers["Content-Type"] == "application/x-ndjson"
    assert answered.headers["X-Gleitzeit-Tries"] == "1"
    assert answered.complete
    *parts, last = answered.lines
    assert "".join(line["part"]["message"]["content"] for line in parts) == "You said: hi"
    assert last == {"done": True}


async def test_parts_that_break_off(serve: Serve, ollama: OllamaServer) -> None:
    """An answer that breaks off says so in its last line, and does not end as if it were complete."""
    gateway = await serve(ollama)
    ollama.script.next(TruncateAfter(2))
    answered = await call(gateway, stream=True)
    assert not answered.complete
    *parts, last = answered.lines
    assert len(parts) == 2
    assert last["error"]["data"]["code"] == "instance_failure"
    assert "without its final marker" in last["error"]["message"]


async def test_answers_that_are_odd(serve: Serve, tmp_path: Path) -> None:
    """A provider of somebody else's may answer what it likes: the caller gets an error, and no slot stays taken."""
    (tmp_path / "odd.py").write_text(ODD_PROVIDER)
    gateway = await serve(files=[tmp_path / "odd.py"])
    error = error_of(await call(gateway, "odd/object", {}))
    assert (error["code"], error["data"]["code"]) == (-32603, "internal")
    assert "no form in JSON" in error["message"]
    nothing = await call(gateway, "odd/nothing", {}, stream=True)
    assert (nothing.lines, nothing.complete) == ([{"done": True}], True)
    for method, code in (("odd/object", "internal"), ("odd/fails", "instance_failure")):
        answered = await call(gateway, method, {}, stream=True)
        first, last = answered.lines
        assert first == {"part": 1}
        assert last["error"]["data"]["code"] == code
        assert not answered.complete
    assert gateway.in_flight == 0
