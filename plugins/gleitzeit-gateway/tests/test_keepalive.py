"""A model that is being loaded: who waits for its first part hears that it is coming, in a way no client minds."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any, Final, Self

import aiohttp
import anthropic
import ollama as ollama_client
import openai
import pytest

from gleitzeit_ollama.testing import HangBeforeHeaders, OllamaServer, SlowLoad, Status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from gleitzeit_gateway.testing import RunningGateway

    Serve = Callable[..., Awaitable[RunningGateway]]

pytestmark = pytest.mark.faults

SAID: Final = "You said: hi"
MESSAGES: Final[list[Any]] = [{"role": "user", "content": "hi"}]
PATHS: Final = {"ollama": "/api/chat", "openai": "/v1/chat/completions", "anthropic": "/v1/messages"}
SIGNS: Final = {"ollama": " ", "openai": ": keep-alive\n\n", "anthropic": 'event: ping\ndata: {"type": "ping"}\n\n'}
TYPES: Final = {"ollama": "application/x-ndjson", "openai": "text/event-stream", "anthropic": "text/event-stream"}
in_each_api = pytest.mark.parametrize("api", PATHS)
over_each_api = pytest.mark.parametrize("apis", [("ollama",), ("openai",)], ids=["on ollama", "on openai"])


def _body(api: str, **more: object) -> dict[str, Any]:
    needed = {"max_tokens": 100} if api == "anthropic" else {}
    return {"model": "smollm2", "messages": MESSAGES, "stream": True, **needed, **more}


async def _after_signs(read: Callable[[int], Awaitable[bytes]], sign: str, times: int) -> None:
    """Read until the sign has come so often."""
    seen = ""
    async with asyncio.timeout(20):
        while seen.count(sign) < times:
            seen += (await read(len(sign))).decode()
    assert seen == sign * times


@over_each_api
@in_each_api
async def test_signs_of_life(serve: Serve, ollama: OllamaServer, api: str, apis: tuple[str, ...]) -> None:
    """Signs come until the model is loaded; then the answer, whole and as if nothing had been."""
    gateway = await serve(ollama, apis=apis, keepalive_s=0.01)
    ollama.script.next(load := SlowLoad())
    async with gateway.session.post(gateway.url + PATHS[api], json=_body(api)) as response:
        assert (response.status, response.content_type) == (200, TYPES[api])
        assert "X-Gleitzeit-Instance" not in response.headers
        await _after_signs(response.content.readexactly, SIGNS[api], 3)
        load.event.set()
        rest = (await response.read()).decode().replace(SIGNS[api] if api != "ollama" else "\0", "")
    assert "You" in rest
    assert ("error" in rest, gateway.in_flight) == (False, 0)
    assert rest.rstrip().endswith({"ollama": "}", "openai": "[DONE]", "anthropic": '{"type":"message_stop"}'}[api])


@in_each_api
async def test_none_is_sent_where_none_is_wanted(serve: Serve, ollama: OllamaServer, api: str) -> None:
    """With 0 nothing is sent before the answer: its status is that of the instance that answers."""
    gateway = await serve(ollama, keepalive_s=0)
    ollama.script.next(Status(500))
    answered = await gateway.ask(PATHS[api], _body(api))
    assert answered.status == 500
    assert SIGNS[api] not in answered.text or api == "ollama"


# -- the official clients ----------------------------------------------------------------------------------------------


async def _texts_of_ollama(url: str) -> AsyncIterator[str]:
    async with ollama_client.AsyncClient(host=url) as client:
        async for part in await client.chat("smollm2", MESSAGES, stream=True):
            yield part.message.content or ""


async def _texts_of_ollama_generate(url: str) -> AsyncIterator[str]:
    async with ollama_client.AsyncClient(host=url) as client:
        async for part in await client.generate("smollm2", "hi", stream=True):
            yield part.response


async def _texts_of_openai(url: str) -> AsyncIterator[str]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        async for chunk in await client.chat.completions.create(model="smollm2", messages=MESSAGES, stream=True):
            yield "".join(choice.delta.content or "" for choice in chunk.choices)


async def _texts_of_anthropic(url: str) -> AsyncIterator[str]:
    async with (
        anthropic.AsyncAnthropic(base_url=url, api_key="any", max_retries=0) as client,
        client.messages.stream(model="smollm2", messages=MESSAGES, max_tokens=100) as stream,
    ):
        async for text in stream.text_stream:
            yield text


CLIENTS: Final = {
    "ollama chat": _texts_of_ollama,
    "ollama generate": _texts_of_ollama_generate,
    "openai": _texts_of_openai,
    "anthropic": _texts_of_anthropic,
}


class Relay:
    """Passes bytes between a client and a gateway, and counts the signs of life among them.

    Args:
        port: Of the gateway.
        sign: As bytes on the wire.
    """

    def __init__(self, port: int, sign: bytes) -> None:
        self._port, self._sign, self._seen = port, sign, bytearray()
        self._tasks = asyncio.TaskGroup()
        self._came = asyncio.Condition()

    async def __aenter__(self) -> Self:
        """Listen."""
        await self._tasks.__aenter__()
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Listen no more; the connections have ended."""
        self._server.close()
        await self._tasks.__aexit__(None, None, None)

    async def until_signs(self, times: int) -> None:
        """Wait until so many have passed."""
        async with asyncio.timeout(20), self._came:
            await self._came.wait_for(lambda: self._seen.count(self._sign) >= times)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, questions = await asyncio.open_connection("127.0.0.1", self._port)
        self._tasks.create_task(self._pass(reader, questions, asked=True))
        self._tasks.create_task(self._pass(answers, writer, asked=False))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, asked: bool) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
                if not asked:
                    async with self._came:
                        self._seen += data
                        self._came.notify_all()
        finally:
            writer.close()


async def _collected(texts: AsyncIterator[str], into: list[str]) -> None:
    async for text in texts:
        into.append(text)  # noqa: PERF401 - what has come is looked at meanwhile


@over_each_api
@pytest.mark.parametrize("client", CLIENTS)
async def test_official_clients_do_not_mind(
    serve: Serve, ollama: OllamaServer, client: str, apis: tuple[str, ...]
) -> None:
    """To each official client the answer is as if no signs had come before it."""
    gateway = await serve(ollama, apis=apis, keepalive_s=0.01)
    ollama.script.next(load := SlowLoad())
    sign, texts = SIGNS[client.partition(" ")[0]].encode(), list[str]()
    async with Relay(gateway.gateway.port, b"%x\r\n%b\r\n" % (len(sign), sign)) as relay, asyncio.TaskGroup() as group:
        group.create_task(_collected(CLIENTS[client](relay.url), texts))
        await relay.until_signs(3)
        assert texts == []
        load.event.set()
    assert "".join(texts) == SAID


@pytest.mark.parametrize("client", CLIENTS)
async def test_official_clients_hear_of_an_error_after_signs(serve: Serve, ollama: OllamaServer, client: str) -> None:
    """An error that comes after the head is an exception of the client's own, with our words."""
    gateway = await serve(ollama, keepalive_s=0.01)
    ollama.script.next(hang := HangBeforeHeaders())
    sign, texts = SIGNS[client.partition(" ")[0]].encode(), list[str]()
    caught: list[Exception] = []

    async def ask(url: str) -> None:
        try:
            await _collected(CLIENTS[client](url), texts)
        except (ollama_client.ResponseError, openai.APIError, anthropic.APIError) as error:
            caught.append(error)

    async with Relay(gateway.gateway.port, b"%x\r\n%b\r\n" % (len(sign), sign)) as relay, asyncio.TaskGroup() as group:
        group.create_task(ask(relay.url))
        await relay.until_signs(1)
        assert hang.reached.is_set()
        await ollama.stop()
    assert texts == []
    assert (
        "refused" in str(caught[0]).lower() or "closed the connection" in str(caught[0]) or "is down" in str(caught[0])
    )


# -- what else may happen after the head -------------------------------------------------------------------------------


@over_each_api
@in_each_api
async def test_another_instance_takes_over_after_signs(
    serve: Serve, ollama: OllamaServer, other: OllamaServer, api: str, apis: tuple[str, ...]
) -> None:
    """Signs are no output: what fails before its first output is still answered by another instance."""
    gateway = await serve(ollama, other, apis=apis, keepalive_s=0.01, route={"strategy": "round_robin"})
    hangs = HangBeforeHeaders(), HangBeforeHeaders()
    ollama.script.next(hangs[0])
    other.script.next(hangs[1])
    async with gateway.session.post(gateway.url + PATHS[api], json=_body(api)) as response:
        await _after_signs(response.content.readexactly, SIGNS[api], 1)
        first, second = (ollama, other) if hangs[0].reached.is_set() else (other, ollama)
        await first.stop()
        async with asyncio.timeout(20):
            await second.wait_for(lambda server: server.held == 1)
            second.release()
            rest = (await response.read()).decode()
    assert "You" in rest
    assert "error" not in rest


@in_each_api
async def test_an_error_after_signs_is_in_band(serve: Serve, ollama: OllamaServer, api: str) -> None:
    """After the head an error stands inside the answer, in its API's shape, and the answer has no clean end."""
    gateway = await serve(ollama, keepalive_s=0.01, route={"timeout_s": 0.5, "max_tries": 1})
    ollama.script.always(HangBeforeHeaders())
    answered = await gateway.ask(PATHS[api], _body(api))
    assert (answered.status, answered.complete) == (200, False)
    assert answered.text.startswith(SIGNS[api])
    assert "deadline exceeded" in answered.text
    assert "DONE" not in answered.text
    async with asyncio.timeout(20):
        await ollama.wait_for(lambda server: server.disconnects == 1)
    assert gateway.in_flight == 0


@in_each_api
async def test_leaving_among_signs(serve: Serve, ollama: OllamaServer, api: str) -> None:
    """Who leaves while signs are sent leaves nothing behind."""
    gateway = await serve(ollama, keepalive_s=0.01)
    ollama.script.next(HangBeforeHeaders())
    async with gateway.session.post(gateway.url + PATHS[api], json=_body(api)) as response:
        await _after_signs(response.content.readexactly, SIGNS[api], 2)
        assert gateway.in_flight == 1
    async with asyncio.timeout(20):
        await ollama.wait_for(lambda server: server.disconnects == 1)
        await gateway.until(lambda: gateway.in_flight == 0)


async def test_a_load_alone_after_signs(serve: Serve, ollama: OllamaServer) -> None:
    """What Ollama answers as a whole although a stream was asked for is a line of it then."""
    gateway = await serve(ollama, keepalive_s=0.01)
    ollama.script.next(load := SlowLoad())
    async with gateway.session.post(gateway.url + "/api/chat", json=_body("ollama", messages=[])) as response:
        await _after_signs(response.content.readexactly, " ", 1)
        load.event.set()
        rest = await response.read()
    assert b'"done_reason":"load"' in rest
    assert rest.endswith(b"\n")


@pytest.mark.parametrize("fails", [False, True], ids=["answers", "fails"])
async def test_signs_in_rpc(serve: Serve, ollama: OllamaServer, *, fails: bool) -> None:
    """Also who streams by JSON-RPC hears of it; each line is JSON with them, too."""
    gateway = await serve(ollama, keepalive_s=0.01)
    ollama.script.next(load := SlowLoad())
    call = {"jsonrpc": "2.0", "id": 1, "method": "llm/chat", "stream": True}
    params = {"model": "smollm2", "messages": MESSAGES}
    seen = bytearray()
    async with gateway.session.post(gateway.url + "/rpc", json={**call, "params": params}) as response:
        await _after_signs(response.content.readexactly, " ", 2)
        if fails:
            await ollama.stop()
        load.event.set()
        with contextlib.suppress(aiohttp.ClientPayloadError):
            async for data in response.content.iter_any():
                seen += data
    lines = [json.loads(line) for line in seen.splitlines()]
    assert lines[-1].keys() == {"error" if fails else "done"}
