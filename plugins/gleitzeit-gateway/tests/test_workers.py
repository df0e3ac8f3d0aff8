"""Several processes at one address: they serve, are begun again, stop together, and refuse what they cannot share."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from gleitzeit_core.cli.app import root
from gleitzeit_core.errors import ConfigurationError
from gleitzeit_gateway.workers import reserve
from gleitzeit_ollama.testing import Gate, OllamaServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    Start = Callable[..., Awaitable["Group"]]

LIMIT_S = 40
QUESTION = {"model": "smollm2", "messages": [{"role": "user", "content": "hi"}]}

BROKEN = """
from gleitzeit_core.errors import GleitzeitError
from gleitzeit_core.hookspecs import HubType, hookimpl
from gleitzeit_core.hub import HubOptions, ResourceHub

class Broken(ResourceHub):
    kind = "broken"
    async def open(self):
        raise GleitzeitError("the cellar is under water")

@hookimpl
def gleitzeit_register_hubs():
    return [HubType(name="broken", target=f"{__name__}:Broken", options="gleitzeit_core.hub:HubOptions", summary="x")]
"""


class Group:
    """`gleitzeit serve --workers N`, running; `said` is what it has said on both of its outputs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process, self.said = process, ""
        self.url = ""

    async def until_said(self, words: str, times: int = 1) -> None:
        """Wait for something on one of its outputs."""
        assert self.process.stdout is not None
        async with asyncio.timeout(LIMIT_S):
            while self.said.count(words) < times:
                line = (await self.process.stdout.readline()).decode()
                assert line, f"it ended before it said {words!r}:\n{self.said}"
                self.said += line
        found = re.search(r"listens on (\S+)", self.said)
        self.url = found[1] if found else ""

    async def ended(self) -> int:
        """Wait for its end: without a traceback, and with nobody left."""
        async with asyncio.timeout(LIMIT_S):
            out, _ = await self.process.communicate()
        self.said += out.decode()
        assert "Traceback" not in self.said, self.said
        with pytest.raises(ProcessLookupError):
            os.killpg(self.process.pid, 0)
        assert self.process.returncode is not None
        return self.process.returncode

    def workers(self) -> list[int]:
        """The processes that it has begun, oldest first."""
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as file:  # noqa: PTH123 - of the kernel
            return [int(text) for text in file.read().split()]

    async def ask(self, path: str, body: object = None, verb: str = "") -> tuple[int, str]:
        """Status and body, on a connection of its own."""
        verb = verb or ("POST" if body is not None else "GET")
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session,
            session.request(verb, self.url + path, json=body) as response,
        ):
            return response.status, await response.text()


@pytest.fixture
async def group(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts `gleitzeit serve` with arguments; kills what is left of it at the end."""
    started: list[Group] = []
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("OLLAMA_", "GLEITZEIT_", "XDG_"))}
    environment = {**kept, "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    async def start(*arguments: str) -> Group:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-u", "-m", "gleitzeit_core.cli", "serve", *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment,
            cwd=tmp_path,
            start_new_session=True,
        )
        started.append(Group(process))
        return started[-1]

    yield start
    for one in started:
        if one.process.returncode is None:
            os.killpg(one.process.pid, signal.SIGKILL)
            await one.process.communicate()


async def workers_that_tell(running: Group) -> set[str]:
    """The workers that the numbers for Prometheus are from."""
    _, text = await running.ask("/metrics")
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {sample.labels["worker"] for sample in samples}


async def all_tell(running: Group, count: int) -> None:
    """Wait until so many workers serve."""
    async with asyncio.timeout(LIMIT_S):
        while await workers_that_tell(running) != {str(number + 1) for number in range(count)}:
            await asyncio.sleep(0.01)


async def test_all_workers_serve(group: Start, ollama: OllamaServer) -> None:
    """One address, several processes; Prometheus is told of all of them by whichever it asks."""
    running = await group("--port", "0", "--workers", "3", "--instance", ollama.url, "--no-access-log")
    await running.until_said("/v1/chat/completions")
    assert len(running.workers()) == 3
    await all_tell(running, 3)
    answers = await asyncio.gather(*(running.ask("/api/chat", {**QUESTION, "stream": False}) for _ in range(40)))
    assert {status for status, _ in answers} == {200}
    tries = 0.0
    _, text = await running.ask("/metrics")
    for family in text_string_to_metric_families(text):
        tries += sum(sample.value for sample in family.samples if sample.name == "gleitzeit_tries_total")
    assert tries == 40
    running.process.send_signal(signal.SIGTERM)
    assert await running.ended() == 0


async def test_one_that_is_killed_is_begun_again(group: Start, ollama: OllamaServer) -> None:
    """The others serve meanwhile."""
    # Nobody reads what it says while it is asked: a line for each request would fill the pipe.
    running = await group("--port", "0", "--workers", "2", "--instance", ollama.url, "--no-access-log")
    await running.until_said("/v1/chat/completions")
    await all_tell(running, 2)
    first, second = running.workers()
    os.kill(first, signal.SIGKILL)
    await running.until_said("has ended by signal SIGKILL; another begins in ")
    async with asyncio.timeout(LIMIT_S):
        while len(running.workers()) < 2:
            status, _ = await running.ask("/api/version")
            assert status == 200
    assert second in running.workers()
    assert first not in running.workers()
    running.process.send_signal(signal.SIGINT)
    assert await running.ended() == 130


async def test_running_answers_are_finished(group: Start, ollama: OllamaServer) -> None:
    """At SIGTERM all workers drain, and a second one ends them at once."""
    ollama.gate = gate = Gate(tokens=1)
    running = await group("--port", "0", "--workers", "2", "--instance", ollama.url)
    await running.until_said("/v1/chat/completions")
    async with aiohttp.ClientSession() as session, session.post(f"{running.url}/api/chat", json=QUESTION) as response:
        assert b"You" in await response.content.readline()
        running.process.send_signal(signal.SIGTERM)
        await running.until_said("draining")
        gate.open()
        assert b'"done":true' in (await response.read()).splitlines()[-1]
    assert await running.ended() == 0


async def test_they_end_with_the_first_process(group: Start, ollama: OllamaServer) -> None:
    """However it ends."""
    running = await group("--port", "0", "--workers", "2", "--instance", ollama.url)
    await running.until_said("/v1/chat/completions")
    running.process.kill()
    async with asyncio.timeout(LIMIT_S):
        await running.process.communicate()
        while True:
            try:
                os.killpg(running.process.pid, 0)
            except ProcessLookupError:
                return
            await asyncio.sleep(0.01)


async def test_all_reload(group: Start, ollama: OllamaServer, other: OllamaServer, tmp_path: Path) -> None:
    """By a signal to the first, and when one of them is asked; instances are not changed by hand."""
    file = tmp_path / "gleitzeit.yaml"
    text = "hubs: {{lan: {{type: ollama, instances: [{}]}}}}\ngateway: {{port: 0, workers: 2}}\n"
    file.write_text(text.format(ollama.url))
    running = await group()
    await running.until_said("/v1/chat/completions")
    file.write_text(text.format(f"{ollama.url}, {other.url}"))
    running.process.send_signal(signal.SIGHUP)
    await running.until_said("hubs.lan.instances", times=2)
    file.write_text(text.format(ollama.url))
    status, _ = await running.ask("/admin/reload", verb="POST")
    assert status == 200
    await running.until_said("hubs.lan.instances", times=4)
    file.write_text("hubs: {here: {type: llamacpp}}\ngateway: {port: 0, workers: 2}\n")
    status, said = await running.ask("/admin/reload", verb="POST")
    assert status == 422
    assert "the hub 'here' creates instances" in said
    status, said = await running.ask("/admin/instances", {"url": other.url})
    assert status == 409
    assert "several workers" in said
    running.process.send_signal(signal.SIGTERM)
    assert await running.ended() == 0


@pytest.mark.parametrize(
    ("hubs", "words"),
    [
        ("", "yaml:2: gateway.workers: several workers need to know their instances"),
        ("hubs: {here: {type: llamacpp}}", "yaml:1: hubs.here: the hub 'here' creates instances"),
        (
            "hubs: {here: {type: ollama, managed: {command: [ollama, serve]}}}",
            "yaml:1: hubs.here: the hub 'here' creates instances",
        ),
    ],
)
async def test_hubs_that_create_are_refused(group: Start, tmp_path: Path, hubs: str, words: str) -> None:
    """Each worker would create its own. Who checks the configuration beforehand hears the same."""
    file = tmp_path / "gleitzeit.yaml"
    file.write_text(f"{hubs}\ngateway: {{port: 0, workers: 2}}\n")
    running = await group()
    assert await running.ended() == 2
    assert words in running.said
    checked = await asyncio.to_thread(CliRunner().invoke, root, ["--config", str(file), "config", "check"])
    assert isinstance(checked.exception, ConfigurationError)
    assert words in str(checked.exception)


async def test_hubs_that_create_with_a_flag(group: Start, tmp_path: Path) -> None:
    """The configuration alone is right; with more workers it is not."""
    file = tmp_path / "gleitzeit.yaml"
    file.write_text("hubs: {here: {type: llamacpp}}\n")
    checked = await asyncio.to_thread(CliRunner().invoke, root, ["--config", str(file), "config", "check"])
    assert checked.exit_code == 0
    running = await group("--workers", "2")
    assert await running.ended() == 2
    assert "the hub 'here' creates instances" in running.said


async def test_a_mistake_at_the_start_ends_all(group: Start, tmp_path: Path) -> None:
    """What each of them would run into is said once or more, and not tried for ever."""
    (tmp_path / "broken.py").write_text(BROKEN)
    hubs = "hubs: {here: {type: broken}}\nplugins: {files: [./broken.py]}"
    (tmp_path / "gleitzeit.yaml").write_text(f"{hubs}\ngateway: {{port: 0, workers: 2}}\n")
    running = await group()
    assert await running.ended() == 1
    assert "the cellar is under water" in running.said
    assert "another begins" not in running.said


async def test_an_address_that_is_taken(group: Start, ollama: OllamaServer) -> None:
    """Whether by another group of workers or by one process."""
    running = await group("--port", "0", "--workers", "2", "--instance", ollama.url)
    await running.until_said("/v1/chat/completions")
    port = running.url.rpartition(":")[2]
    for count in ("1", "2"):
        second = await group("--port", port, "--workers", count, "--instance", ollama.url)
        assert await second.ended() == 1
        assert "cannot listen on" in second.said
        assert "choose another port" in second.said
    running.process.send_signal(signal.SIGTERM)
    assert await running.ended() == 0


def test_reserve_holds_all_addresses_of_a_name() -> None:
    """With one port for all of them."""
    port, held = reserve("localhost", 0)
    try:
        assert {one.getsockname()[1] for one in held} == {port}
        address: Any = held[0].getsockname()
        with socket.socket(held[0].family) as taken, pytest.raises(OSError, match="in use"):
            taken.bind(address)
    finally:
        for one in held:
            one.close()
