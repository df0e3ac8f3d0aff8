"""Requests that go in a circle are refused, whatever way they take; those that only come through other gateways pass."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_gateway.via import MAX_GATEWAYS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gleitzeit_gateway.testing import RunningGateway
    from gleitzeit_ollama.testing import OllamaServer

    Serve = Callable[..., Awaitable[RunningGateway]]

pytestmark = pytest.mark.faults
QUESTION = {"model": "smollm2", "messages": [{"role": "user", "content": "hi"}]}
PATHS = ("/api/chat", "/v1/chat/completions", "/v1/messages")
in_parts_or_not = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])


async def join(gateway: RunningGateway, url: str, **settings: object) -> None:
    """Make what listens at `url` an instance of a gateway that is running."""
    await gateway.manager.add_instance({"url": url, "models": ["smollm2"], "probe": False, **settings}, "lan")


def asking(path: str, *, stream: bool) -> dict[str, Any]:
    """A question as the API of `path` takes it."""
    return {**QUESTION, "stream": stream, **({"max_tokens": 9} if path == "/v1/messages" else {})}


def words_of(answer: Any) -> str:  # noqa: ANN401 - an envelope
    """The sentence in an error of any API."""
    error = answer["error"]
    return str(error["message"] if isinstance(error, dict) else error)


@in_parts_or_not
@pytest.mark.parametrize("apis", [("ollama",), ("openai",)], ids=["ollama", "openai"])
@pytest.mark.parametrize("path", PATHS)
async def test_every_request_is_marked(
    serve: Serve, ollama: OllamaServer, path: str, apis: tuple[str], *, stream: bool
) -> None:
    """What is sent on has the mark, passed through or translated, and it is one gateway's own from start to end."""
    gateway = await serve(ollama, apis=apis)
    for _ in range(2):
        assert (await gateway.ask(path, asking(path, stream=stream))).status == 200
    first, second = [record.headers["Via"] for record in ollama.requests if record.body]
    assert first == second
    assert first.startswith("1.1 gleitzeit-")


@in_parts_or_not
@pytest.mark.parametrize("path", PATHS)
async def test_gateway_that_is_its_own_instance(serve: Serve, ollama: OllamaServer, path: str, *, stream: bool) -> None:
    """A request comes back once, is refused there, and the caller hears of it in its API's envelope."""
    gateway = await serve(ollama)
    await gateway.manager.remove_instance(gateway.manager.instances()[0].instance.id)
    await join(gateway, gateway.url)
    async with asyncio.timeout(20):
        refused = await gateway.ask(path, asking(path, stream=stream))
    assert refused.status == 508
    assert "has come back to the gateway" in words_of(refused.json)
    assert gateway.in_flight == 0


async def test_circle_beside_an_instance_that_is_well(serve: Serve, ollama: OllamaServer) -> None:
    """The other one answers, however many come at once; it says nothing against the gateway that declines."""
    gateway = await serve(ollama, route={"strategy": "round_robin"}, hub={"max_concurrent": 64})
    await join(gateway, gateway.url, max_concurrent=64)
    answers = [await gateway.chat() for _ in range(12)]
    answers += await asyncio.gather(*(gateway.chat() for _ in range(40)))
    assert [answered.status for answered in answers] == [200] * 52
    assert {answered.headers["X-Gleitzeit-Tries"] for answered in answers} == {"1", "2"}
    states = {report.instance.endpoint: report.state for report in gateway.manager.instances()}
    assert states == {ollama.url: "ready", gateway.url: "ready"}
    numbers = gateway.manager.metrics_report(recent=False)["sum"]
    assert numbers["results"]["declined"] > 20
    assert numbers["success_rate"] == 1.0


async def test_gateway_that_is_checked_is_no_ollama(serve: Serve, ollama: OllamaServer) -> None:
    """Where checks are not forbidden they find out, and nothing is sent there; the lists are those of the others."""
    gateway = await serve(ollama)
    await join(gateway, gateway.url, probe=True, models=[])
    states = {report.instance.endpoint: report.state for report in gateway.manager.instances()}
    assert states == {ollama.url: "ready", gateway.url: "down"}
    for path in ("/api/ps", "/api/tags", "/v1/models"):
        assert (await gateway.ask(path)).status == 200
    assert [(await gateway.chat()).headers["X-Gleitzeit-Tries"] for _ in range(4)] == ["1"] * 4


async def test_circle_of_two(serve: Serve, ollama: OllamaServer, other: OllamaServer) -> None:
    """Two gateways that are each other's instance: the request ends where it has been before."""
    one, two = await serve(ollama), await serve(other)
    for gateway, url in ((one, two.url), (two, one.url)):
        (report,) = gateway.manager.instances()
        await gateway.manager.remove_instance(report.instance.id)
        await join(gateway, url)
    async with asyncio.timeout(20):
        assert (await one.chat()).status == 508
    assert (one.in_flight, two.in_flight) == (0, 0)


async def test_one_gateway_behind_another(serve: Serve, ollama: OllamaServer) -> None:
    """That is no circle; the last one sees both marks, in order, and nothing of other proxies on the way."""
    inner = await serve(ollama)
    outer = await serve(inner.url, hub={"probe": False, "models": ["smollm2"]})
    answered = await outer.ask("/api/chat", {**QUESTION, "stream": False}, headers={"Via": "1.0 secret.proxy.example"})
    assert answered.status == 200
    (record,) = [record for record in ollama.requests if record.body]
    first, second = record.headers["Via"].split(", ")
    assert first != second
    assert {first[:14], second[:14]} == {"1.1 gleitzeit-"}


@pytest.mark.parametrize(("gateways", "status"), [(MAX_GATEWAYS - 1, 200), (MAX_GATEWAYS, 508)])
async def test_long_chain(serve: Serve, ollama: OllamaServer, gateways: int, status: int) -> None:
    """So many gateways may be behind each other; whether in one header or in several makes no difference."""
    gateway = await serve(ollama)
    marks = [f"1.1 gleitzeit-{number:016x}" for number in range(gateways)]
    answered = await gateway.ask("/api/chat", QUESTION, headers={"Via": ", ".join(marks)})
    assert answered.status == status
    lines = "".join(f"Via: {mark}\r\n" for mark in marks)
    raw = await gateway.raw(
        f"GET /api/version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{lines}\r\n".encode()
    )
    assert raw.startswith(b"HTTP/1.1 %d " % (status if status == 508 else 200))


async def test_mark_that_is_none(serve: Serve, ollama: OllamaServer) -> None:
    """What only begins like the mark of a gateway is not sent on: a caller could put anything there."""
    gateway = await serve(ollama)
    given = f"1.1 gleitzeit-{'x' * 5000}, 1.1 gleitzeit-a (a comment), 1.1 gleitzeit-other"
    await gateway.ask("/api/chat", {**QUESTION, "stream": False}, headers={"Via": given})
    (record,) = [record for record in ollama.requests if record.body]
    first, own = record.headers["Via"].split(", ")
    assert first == "1.1 gleitzeit-other"
    assert own.startswith("1.1 gleitzeit-")


async def test_probes_are_not_marked(serve: Serve, ollama: OllamaServer) -> None:
    """What nobody asked for comes from nobody; and a caller's mark does not cling to the next request."""
    gateway = await serve(ollama)
    await gateway.ask("/api/chat", QUESTION, headers={"Via": "1.1 gleitzeit-other"})
    await gateway.chat()
    probes = [record for record in ollama.requests if record.path == "/api/version"]
    assert probes
    assert not any("Via" in record.headers for record in probes)
    vias = [record.headers["Via"] for record in ollama.requests if record.body]
    assert vias[0] == f"1.1 gleitzeit-other, {vias[1]}"
