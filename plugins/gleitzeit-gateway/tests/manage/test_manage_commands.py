"""``gleitzeit models ...`` through a running gateway."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from gleitzeit_core.cli import main
from gleitzeit_ollama.testing import DropAfter, Model, OllamaServer

from .servers import have

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gleitzeit_gateway.testing import RunningGateway

    Serve = Callable[..., Awaitable[RunningGateway]]
    Run = Callable[..., Awaitable["Done"]]
    Pair = tuple[OllamaServer, OllamaServer]

KEY, ADMIN = "a-key-of-at-least-16-characters", "another-key-of-at-least-16"
KEYS = [{"name": "alice", "key": KEY}, {"name": "root", "key": ADMIN, "admin": True}]


@dataclass(frozen=True)
class Done:
    """How a run of the program ended."""

    status: int
    out: str
    err: str


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs the program in a thread of this process."""

    async def go(*arguments: str) -> Done:
        capfd.readouterr()
        status = await asyncio.to_thread(main, ("models", *arguments))
        return Done(status, *capfd.readouterr())

    return go


async def test_everything_through_a_gateway(serve: Serve, pair: Pair, run: Run) -> None:
    """Pull, copy, show, load, unload and rm are carried out in its pool, which knows of it at once."""
    gateway = await serve(*pair)
    there = ("--gateway", gateway.url)
    done = await run("pull", "big", "--replicas", "2", *there, "--json")
    steps = [json.loads(line) for line in done.out.splitlines()]
    assert (done.status, done.err) == (0, "")
    assert steps[0] == {"instance": gateway.url, "status": "pulling manifest"}
    assert steps[-1] == {"instance": gateway.url, "status": "success"}
    assert max(step.get("completed_bytes", 0) for step in steps) == 4000
    assert have("big", *pair) == [True, True]
    ids = {report.instance.id for report in gateway.manager.instances()}
    done = await run("copy", "big", "mine", *there, "--json")
    assert set(json.loads(done.out)["instances"]) == ids
    assert (await gateway.chat(model="mine")).status == 200
    assert "134.52M" in (await run("show", "mine", *there)).out
    assert (await run("load", "mine", "--keep-alive", "1h", *there)).status == 0
    assert (await run("unload", "mine", *there)).status == 0
    assert not any(server.runners.loaded() for server in pair)
    done = await run("rm", "mine", *there, "--instance", pair[0].url)
    assert done.status == 0
    assert have("mine", *pair) == [False, True]


async def test_the_configured_gateway_is_used_when_it_runs(
    serve: Serve, pair: Pair, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --gateway the one that the configuration names is asked; --local talks to the servers from here."""
    pair[0].catalogue.add(Model("mine"))
    gateway = await serve(pair[0])
    monkeypatch.setenv("GLEITZEIT_GATEWAY__PORT", str(gateway.gateway.port))
    monkeypatch.setenv("OLLAMA_HOST", pair[1].url)
    assert (await run("copy", "mine", "other")).status == 0
    assert have("other", pair[0]) == [True]
    done = await run("copy", "smollm2", "other", "--local", "--instance", pair[1].url)
    assert done.status == 0
    assert have("other", pair[1]) == [True]


async def test_keys(serve: Serve, pair: Pair, run: Run) -> None:
    """A missing key, one that may not do it and one that may are told apart."""
    gateway = await serve(*pair, keys=KEYS)
    there = ("--gateway", gateway.url)
    assert "wants a key: use --key or GLEITZEIT_KEY" in (await run("rm", "smollm2", *there)).err
    assert "does not accept this key" in (await run("rm", "smollm2", *there, "--key", "wrong")).err
    done = await run("rm", "smollm2", *there, "--key", KEY)
    assert (done.status, done.err) == (1, "Error: this needs a key with 'admin: true'\n")
    assert have("smollm2", *pair) == [True, True]
    assert (await run("rm", "smollm2", *there, "--key", ADMIN)).status == 0
    assert have("smollm2", *pair) == [False, False]


async def test_failures_are_told(serve: Serve, ollama: OllamaServer, run: Run) -> None:
    """A refusal, an error in the stream, a stream that breaks off, and nobody there: one sentence each, status 1."""
    ollama.registry = {"big": 4000}
    gateway = await serve(ollama)
    there = ("--gateway", gateway.url)
    for arguments, reason in (
        (("pull", "nothere", *there), "pull model manifest: file does not exist"),
        (("rm", "nope", *there), "model 'nope' not found"),
        (("show", "nope", *there), "model 'nope' not found"),
        (("load", "nope", *there), "model 'nope' not found"),
        (("pull", "big", "--instance", "gpu9", *there), "there is no instance 'gpu9'"),
        (("pull", "big", "--gateway", "http://127.0.0.1:1"), "no gateway at http://127.0.0.1:1"),
        (("copy", "a", "b", "--gateway", "http://127.0.0.1:1"), "no gateway at http://127.0.0.1:1"),
    ):
        done = await run(*arguments)
        assert (done.status, reason in done.err, done.err.count("\n")) == (1, True, 1), done
    ollama.script.next(DropAfter(3), on="/api/pull")
    done = await run("pull", "big", *there)
    assert (done.status, "could not pull 'big'" in done.err) == (1, True)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "answered no JSON object"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "answered no JSON object"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{}", "broke off"),
        (b"HTTP/1.1 500 No\r\nContent-Length: 6\r\n\r\n<html>", "HTTP 500"),
        (b"nonsense\r\n\r\n", "broke off"),
        (b"", "broke off"),
    ],
)
async def test_what_is_no_gateway_is_told(run: Run, answer: bytes, reason: str) -> None:
    """Whatever answers there, it is one sentence and no traceback."""

    async def strange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(strange, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        for arguments in (("pull", "big"), ("load", "big")):
            done = await run(*arguments, "--gateway", url)
            assert (done.status, reason in done.err) == (1, True), done
            assert "Traceback" not in done.err
