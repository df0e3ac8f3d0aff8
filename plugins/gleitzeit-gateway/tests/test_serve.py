"""The command itself, in a process of its own: what it says, how it stops, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import aiohttp
import pytest

from gleitzeit_ollama.testing import Gate, Hang, OllamaServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    Start = Callable[..., Awaitable["Program"]]

LIMIT_S = 30
QUESTION = {"model": "smollm2", "messages": [{"role": "user", "content": "hi"}]}
SETTINGS = re.compile(r"OLLAMA_|GLEITZEIT_|XDG_|HOME$")


@dataclass
class Program:
    """`gleitzeit serve`, running."""

    process: asyncio.subprocess.Process
    said: list[str] = field(default_factory=list)
    complained: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where it says that it listens."""
        return re.sub(r".* ", "", self.said[0])

    async def until_said(self, words: str) -> str:
        """Wait for a line on standard output."""
        return await _until(self.process.stdout, self.said, words)

    async def until_complained(self, words: str) -> str:
        """Wait for a line on standard error."""
        return await _until(self.process.stderr, self.complained, words)

    async def ended(self) -> int:
        """Wait for its end and take in what it said meanwhile."""
        async with asyncio.timeout(LIMIT_S):
            out, err = await self.process.communicate()
        self.said += out.decode().splitlines()
        self.complained += err.decode().splitlines()
        assert not any("Traceback" in line or "Warning" in line for line in self.complained), self.complained
        with pytest.raises(ProcessLookupError):  # It was the first of its group: nobody is left in there.
            os.killpg(self.process.pid, 0)
        assert self.process.returncode is not None
        return self.process.returncode

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)


async def _until(stream: asyncio.StreamReader | None, lines: list[str], words: str) -> str:
    assert stream is not None
    async with asyncio.timeout(LIMIT_S):
        while True:
            line = (await stream.readline()).decode()
            assert line, f"it ended before it said {words!r}: {lines}"
            lines.append(line.rstrip("\n"))
            if words in line:
                return lines[-1]


@pytest.fixture
async def program(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts `gleitzeit serve` with arguments; kills what is left of it at the end."""
    started: list[Program] = []
    environment = {key: value for key, value in os.environ.items() if not SETTINGS.match(key)}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    async def start(*arguments: str, port: str = "0", stdin: int = asyncio.subprocess.DEVNULL, **more: str) -> Program:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "gleitzeit_core.cli", "serve", "--port", port, *arguments),
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**environment, **more},
            cwd=tmp_path,
            start_new_session=True,
        )
        started.append(Program(process))
        return started[-1]

    yield start
    for one in started:
        if one.process.returncode is None:
            one.process.kill()
            await one.process.communicate()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client."""
    async with aiohttp.ClientSession() as session:
        yield session


@asynccontextmanager
async def _stream(program: Program, session: aiohttp.ClientSession) -> AsyncIterator[aiohttp.ClientResponse]:
    """An answer in parts that has begun."""
    async with AsyncExitStack() as stack:
        response = await stack.enter_async_context(session.post(f"{program.url}/api/chat", json=QUESTION))
        assert json.loads(await response.content.readline())["message"]["content"] == "You"
        yield response


# -- what it says --------------------------------------------------------------------------------------------------


async def test_greeting(program: Start, ollama: OllamaServer, other: OllamaServer) -> None:
    """It says its address, the instances and the models, and the two commands it says work as they are."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    running = await program("--instance", ollama.url, "--instance", other.url)
    await running.until_said("/v1/chat/completions")
    address, instances, first, second, models, hint, native, v1 = running.said
    assert re.fullmatch(r"Gleitzeit listens on http://127\.0\.0\.1:\d+", address)
    assert (instances, hint) == ("instances:", "try:")
    assert [line.split() for line in sorted((first, second))] == [
        ["ready", "ollama", url] for url in sorted((ollama.url, other.url))
    ]
    assert models == "models: smollm2"
    for command in (native, v1):
        shell = await asyncio.create_subprocess_shell(
            f"{command} --silent --show-error --fail", stdout=asyncio.subprocess.PIPE
        )
        out, _ = await shell.communicate()
        assert shell.returncode == 0
        assert b"said:" in out
    running.signal(signal.SIGTERM)
    assert await running.ended() == 0
    lines = [line for line in running.complained if "POST" in line]
    assert len(lines) == 2
    assert all(re.search(r" INFO [0-9a-f]{16} POST /\S+ 200 \S+ms model=smollm2 instance=ollama-", li) for li in lines)


async def test_greeting_without_anything(program: Start) -> None:
    """An instance that is down is listed with the reason, and a gateway without models serves all the same."""
    running = await program("--instance", "ollama=http://127.0.0.1:1", "--no-access-log")
    await running.until_said("models: none yet")
    assert re.search(r"^  down +ollama +http://127\.0\.0\.1:1 \(.+\)$", running.said[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", int(running.url.rpartition(":")[2]))
    writer.write(b"GET / HTTP/9.9\r\n\r\n")
    assert (await reader.readline()).split()[1] == b"400"  # and no traceback for it, as `ended` sees
    writer.close()
    running.signal(signal.SIGINT)
    assert await running.ended() == 130


async def test_help(program: Start) -> None:
    """The help ends with examples, each on a line of its own."""
    running = await program("--help")
    assert await running.ended() == 0
    assert "gleitzeit serve --instance http://gpu1:11434 --instance http://gpu2:11434" in map(str.strip, running.said)


# -- how it stops --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
async def test_drain(
    program: Start, ollama: OllamaServer, session: aiohttp.ClientSession, number: signal.Signals, status: int
) -> None:
    """A signal ends it when what runs is complete; what is new meanwhile is refused."""
    ollama.gate = gate = Gate(tokens=1)
    running = await program("--instance", ollama.url)
    await running.until_said("/v1/chat/completions")
    async with _stream(running, session) as response:
        running.signal(number)
        await running.until_complained("draining: running answers have 30 s; once more to stop now")
        async with session.post(f"{running.url}/api/chat", json=QUESTION) as refused:
            assert refused.status == 503
            assert "shutting down" in (await refused.json())["error"]
        async with session.get(f"{running.url}/health/ready") as ready:
            assert ready.status == 503
        gate.open()
        assert json.loads((await response.read()).splitlines()[-1])["done"] is True
    assert await running.ended() == status


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_second_signal(
    program: Start, ollama: OllamaServer, session: aiohttp.ClientSession, number: signal.Signals, status: int
) -> None:
    """A second signal ends it at once, and whoever was being answered hears of it."""
    ollama.gate = Gate(tokens=1)
    running = await program("--instance", ollama.url, "--grace", "3600")
    await running.until_said("/v1/chat/completions")
    async with _stream(running, session) as response:
        running.signal(number)
        await running.until_complained("draining")
        running.signal(number)
        assert "shutting down" in json.loads(await response.content.readline())["error"]
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.content.readline()
    assert await running.ended() == status
    async with asyncio.timeout(LIMIT_S):
        await ollama.wait_for(lambda server: server.in_flight == 0)


HANGING_HUB = """
import asyncio
from gleitzeit_core.hookspecs import HubType, hookimpl
from gleitzeit_core.hub import HubOptions, ResourceHub


class Hanging(ResourceHub[HubOptions]):
    kind = "hanging"

    async def close(self):
        print("closing", flush=True)
        await asyncio.Event().wait()


@hookimpl
def gleitzeit_register_hubs():
    return [HubType(name="hanging", target=f"{__name__}:Hanging", options=f"{__name__}:HubOptions", summary="hangs")]
"""


async def test_hub_that_never_closes(program: Start, tmp_path: Path) -> None:
    """A second signal also ends what hangs while closing."""
    (tmp_path / "hanging.py").write_text(HANGING_HUB)
    (tmp_path / "gleitzeit.yaml").write_text("plugins: {files: [./hanging.py]}\nhubs: {h: {type: hanging}}\n")
    running = await program()
    await running.until_said("models: none yet")
    running.signal(signal.SIGINT)
    await running.until_said("closing")
    running.signal(signal.SIGINT)
    assert await running.ended() == 130


async def test_grace_period(program: Start, ollama: OllamaServer, session: aiohttp.ClientSession) -> None:
    """What is not complete when the grace period is over gets an error; that is no failure of the program."""
    ollama.gate = Gate(tokens=1)
    running = await program("--instance", ollama.url, "--grace", "0.1")
    await running.until_said("/v1/chat/completions")
    async with _stream(running, session) as response:
        running.signal(signal.SIGTERM)
        assert "grace period is over" in json.loads(await response.content.readline())["error"]
    assert await running.ended() == 0


async def test_signal_while_starting(program: Start, ollama: OllamaServer) -> None:
    """It can be stopped before it is ready."""
    ollama.script.always(hang := Hang(), on="any")
    running = await program("--instance", ollama.url)
    async with asyncio.timeout(LIMIT_S):
        await hang.reached.wait()
    running.signal(signal.SIGTERM)
    assert await running.ended() == 0
    assert running.said == []


# -- what it reads again -------------------------------------------------------------------------------------------


async def test_hang_up_reloads(
    program: Start, ollama: OllamaServer, other: OllamaServer, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """SIGHUP reads the configuration again, says each change, and drops nothing; what is wrong is said, no more."""
    ollama.gate = gate = Gate(tokens=1)
    file = tmp_path / "gleitzeit.yaml"
    text = f"hubs: {{lan: {{type: ollama, instances: [{ollama.url}]}}}}\n"
    file.write_text(text)
    running = await program()
    await running.until_said("/v1/chat/completions")
    async with _stream(running, session) as response:
        file.write_text(text.replace("]", f", {other.url}]") + "routes: [{methods: ['*'], max_queue: 7}]\n")
        running.signal(signal.SIGHUP)
        assert " INFO reload: " in await running.until_complained("hubs.lan")
        await running.until_complained("max_queue: 256 -> 7")
        file.write_text("hubs: {lan: {type: olama}}\n")
        running.signal(signal.SIGHUP)
        await running.until_complained("nothing was reloaded: configuration: 1 problem")
        await running.until_complained("hubs.lan.type")
        await running.until_complained("the gateway goes on as it was")
        gate.open()
        assert json.loads((await response.read()).splitlines()[-1])["done"] is True
    async with session.get(f"{running.url}/admin/status") as answered:
        status = await answered.json()
    assert {one["endpoint"] for one in status["instances"]} == {ollama.url, other.url}
    assert status["routes"][0]["max_queue"] == 7
    running.signal(signal.SIGTERM)
    assert await running.ended() == 0


async def test_hang_up_while_starting(program: Start, ollama: OllamaServer) -> None:
    """SIGHUP does not end it before it is ready, either."""
    ollama.script.next(hang := Hang(), on="any")
    running = await program("--instance", ollama.url)
    async with asyncio.timeout(LIMIT_S):
        await hang.reached.wait()
    running.signal(signal.SIGHUP)
    hang.released.set()
    await running.until_said("Gleitzeit listens on")
    await running.until_complained("reload: nothing has changed")
    running.signal(signal.SIGTERM)
    assert await running.ended() == 0


async def test_flags_go_before_the_file_also_later(
    program: Start, ollama: OllamaServer, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """A strategy given as a flag is that of every route of the file, also when the file has other routes later."""
    file = tmp_path / "gleitzeit.yaml"
    file.write_text("routes: [{methods: ['llm/chat'], max_queue: 3}, {methods: ['llm/*'], strategy: random}]\n")
    running = await program("--instance", ollama.url, "--strategy", "round_robin")
    await running.until_said("/v1/chat/completions")

    async def routes() -> list[tuple[list[str], str, int]]:
        async with session.get(f"{running.url}/admin/status") as answered:
            found = (await answered.json())["routes"]
        return [(route["methods"], route["strategy"], route["max_queue"]) for route in found]

    assert await routes() == [
        (["llm/chat"], "round_robin", 3),
        (["llm/*"], "round_robin", 256),
        (["*"], "round_robin", 256),
    ]
    file.write_text("routes: [{methods: ['*'], strategy: random, max_queue: 9}]\n")
    running.signal(signal.SIGHUP)
    await running.until_complained("routes")
    async with asyncio.timeout(LIMIT_S):
        while len(await routes()) > 1:
            await asyncio.sleep(0.01)
    assert await routes() == [(["*"], "round_robin", 9)]
    running.signal(signal.SIGTERM)
    assert await running.ended() == 0


async def test_terminal_that_is_closed(program: Start, ollama: OllamaServer) -> None:
    """The SIGHUP of a terminal that is closed ends the program, which nobody could reach any more."""
    terminal, its_end = os.openpty()
    try:
        running = await program("--instance", ollama.url, stdin=its_end)
        await running.until_said("/v1/chat/completions")
        running.signal(signal.SIGHUP)
        await running.until_complained("reload: nothing has changed")
    finally:
        os.close(its_end)
        os.close(terminal)
    running.signal(signal.SIGHUP)
    assert await running.ended() == 0


# -- what it refuses -----------------------------------------------------------------------------------------------


async def test_port_in_use(program: Start, ollama: OllamaServer) -> None:
    """A port that is taken is one sentence and status 1, before anything is started or asked."""
    running = await program("--instance", ollama.url, port=str(ollama.port))
    assert await running.ended() == 1
    where = f"http://127.0.0.1:{ollama.port}"
    words = f"Error: cannot listen on {where}: Address already in use; choose another port with --port"
    assert running.complained == [words]
    assert ollama.requests == []


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1"])
async def test_address_that_is_not_ours(program: Start, ollama: OllamaServer, host: str) -> None:
    """An address that is not this machine's is one sentence and status 1."""
    running = await program("--instance", ollama.url, "--host", host, "--allow-anonymous")
    assert await running.ended() == 1
    (line,) = running.complained
    assert line.startswith(f"Error: cannot listen on http://{host}:0: ")
    assert "Unknown error" not in line


async def test_beyond_loopback_without_keys(program: Start, ollama: OllamaServer) -> None:
    """It refuses, says what to do, and status 2; told so, it listens."""
    running = await program("--instance", ollama.url, "--host", "0.0.0.0")  # noqa: S104 - refused
    assert await running.ended() == 2
    text = "\n".join(running.complained)
    assert "0.0.0.0 can be reached from other machines: configure 'keys'" in text
    assert "--allow-anonymous" in text
    allowed = await program("--instance", ollama.url, "--host", "0.0.0.0", "--allow-anonymous")  # noqa: S104 - the test
    await allowed.until_said("/v1/chat/completions")
    assert allowed.url.startswith("http://0.0.0.0:")
    assert "curl http://127.0.0.1:" in allowed.said[-1]
    allowed.signal(signal.SIGTERM)
    assert await allowed.ended() == 0


async def test_keys_from_a_file(
    program: Start, ollama: OllamaServer, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """With keys it listens anywhere, says how to send one, and shows none."""
    key = "a-secret-of-at-least-16-characters"
    (tmp_path / "gleitzeit.yaml").write_text(
        f'gateway: {{host: 0.0.0.0, keys: [{{name: alice, key: "{key}"}}]}}\n'
        f"hubs: {{lan: {{type: ollama, instances: [{ollama.url}]}}}}\n"
    )
    running = await program()
    command = await running.until_said("/v1/chat/completions")
    assert '-H "Authorization: Bearer $GLEITZEIT_KEY"' in command
    url = running.url.replace("0.0.0.0", "127.0.0.1")  # noqa: S104 - to connect
    async with session.get(f"{url}/api/tags", headers={"Authorization": f"Bearer {key}", "Host": "gpu1"}) as answered:
        assert answered.status == 200
    async with session.get(f"{url}/api/tags") as refused:
        assert refused.status == 401
    running.signal(signal.SIGTERM)
    assert await running.ended() == 0
    assert key not in "\n".join(running.said + running.complained)
    assert "key=alice" in running.complained[0]


@pytest.mark.parametrize("strategy", ["priority", "locality", "tagged"])
async def test_strategy_that_needs_options(program: Start, strategy: str) -> None:
    """Which option is missing, and where one can be given: status 2."""
    running = await program("--instance", "http://a", "--strategy", strategy)
    assert await running.ended() == 2
    text = "\n".join(running.complained)
    assert "routes[0].strategy" in text
    assert f"'gleitzeit strategies show {strategy}' has an example" in text


async def test_wrong_options(program: Start) -> None:
    """What is wrong with the options is said before anything starts: status 2."""
    wrong = ("--instance", "http://a/b/c", "--instance", "olama=http://a", "--strategy", "round_robbin")
    running = await program(*wrong)
    assert await running.ended() == 2
    text = "\n".join(running.complained)
    for words in ("did you mean 'round_robin'?", "did you mean 'ollama'?", "must end after host and port"):
        assert words in text
