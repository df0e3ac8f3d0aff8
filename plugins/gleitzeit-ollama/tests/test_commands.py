"""``gleitzeit models pull``, through the program itself."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.resources import instance_id
from gleitzeit_ollama.testing import ErrorLineAfter, Gate, OllamaServer, Status

from .program import Done, gleitzeit
from .seen import pulled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    Run = Callable[..., Awaitable[Done]]

PULL = ("models", "pull")


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the program in a thread of this process, where no configuration lies about."""
    monkeypatch.chdir(tmp_path)

    async def go(*arguments: str) -> Done:
        return await gleitzeit(capfd, *arguments)

    return go


@pytest.fixture
async def ollama() -> AsyncIterator[OllamaServer]:
    """A server with one model and a registry with another."""
    async with OllamaServer(models=["tiny"], registry={"big": 4_000_000}) as server:
        yield server


def _configure(tmp_path: Path, *instances: object, **hubs: object) -> None:
    lan = {"type": "ollama", "instances": instances}
    (tmp_path / "gleitzeit.yaml").write_text(json.dumps({"hubs": {"lan": lan, **hubs} if instances else hubs}))


async def test_it_pulls_and_says_so(run: Run, ollama: OllamaServer, tmp_path: Path) -> None:
    """Without a terminal there is a line for each step, under the instance's name, and the status is 0."""
    _configure(tmp_path, {"url": ollama.url, "name": "gpu1"})
    done = await run(*PULL, "big")
    assert (done.status, done.err) == (0, "")
    steps = [line.removeprefix("gpu1: ") for line in done.out.splitlines()]
    assert steps[0] == "pulling manifest"
    assert steps[-1] == "success"
    assert any(step.endswith(": 100 % of 4 MB") for step in steps)
    assert len(steps) == len(set(steps))
    assert ollama.catalogue.find("big") is not None


async def test_json_is_a_line_for_each_step(run: Run, ollama: OllamaServer) -> None:
    """Programs get what is known of each step, and nothing else on standard output."""
    done = await run(*PULL, "big", "--instance", ollama.url, "--json")
    identity = instance_id("ollama", ollama.url)
    assert (done.status, done.err) == (0, "")
    assert done.lines[0] == {"instance": identity, "status": "pulling manifest"}
    assert done.lines[-1] == {"instance": identity, "status": "success"}
    parts = [line for line in done.lines if "digest" in line]
    assert parts[-1]["completed_bytes"] == parts[-1]["total_bytes"] == 4_000_000


async def test_without_configuration_it_discovers(
    run: Run, ollama: OllamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine with an Ollama needs no file: OLLAMA_HOST is looked at as by the gateway."""
    monkeypatch.setenv("OLLAMA_HOST", ollama.url)
    ollama.registry = {"tiny": 10}
    assert (await run(*PULL, "tiny")).status == 0
    assert pulled(ollama) == ["tiny"]


async def test_all_that_have_it_are_updated(run: Run, tmp_path: Path) -> None:
    """Without --instance those that have the model are asked for it anew, in all hubs, and others are left alone."""
    async with (
        OllamaServer(models=["big"], registry={"big": 10}) as one,
        OllamaServer(models=["big"], registry={"big": 10}) as two,
        OllamaServer(models=[], registry={"big": 10}) as other,
    ):
        _configure(tmp_path, one.url, other.url, second={"type": "ollama", "instances": [two.url]})
        assert (await run(*PULL, "big")).status == 0
        assert [pulled(server) for server in (one, two, other)] == [["big"], ["big"], []]


async def test_instances_are_named_by_id_name_and_url(run: Run, tmp_path: Path) -> None:
    """Each form works, one that occurs twice counts once, and a URL need not be in the configuration."""
    async with (
        OllamaServer(registry={"big": 10}) as by_id,
        OllamaServer(registry={"big": 10}) as by_name,
        OllamaServer(registry={"big": 10}) as stranger,
        OllamaServer(registry={"big": 10}) as unasked,
    ):
        _configure(tmp_path, by_id.url, {"url": by_name.url, "name": "gpu2"}, unasked.url)
        given = (instance_id("ollama", by_id.url), by_id.url, "gpu2", stranger.url + "/")
        done = await run(*PULL, "big", *(word for name in given for word in ("--instance", name)))
        assert done.status == 0
        assert [pulled(server) for server in (by_id, by_name, stranger, unasked)] == [["big"], ["big"], ["big"], []]


async def test_a_failure_is_status_1_with_the_reason(run: Run, ollama: OllamaServer) -> None:
    """What the server said is on standard error, once, and there is no traceback."""
    done = await run(*PULL, "nothere", "--instance", ollama.url)
    assert done.status == 1
    reason = "pull model manifest: file does not exist"
    assert done.err == f"Error: {ollama.url} could not pull 'nothere': {reason}\n"
    assert "success" not in done.out


async def test_a_failure_is_json_too(run: Run, ollama: OllamaServer) -> None:
    """The line of the instance that failed has the error in its one shape."""
    ollama.script.next(ErrorLineAfter(1, "disk is full"), on="/api/pull")
    done = await run(*PULL, "big", "--instance", ollama.url, "--json")
    assert done.status == 1
    error = done.lines[-1]["error"]
    assert error["message"] == f"{ollama.url} could not pull 'big': disk is full"
    assert (error["code"], error["instance"]) == ("instance_failure", instance_id("ollama", ollama.url))


async def test_one_failure_of_two_lets_the_other_finish(run: Run) -> None:
    """The status is 1 when any failed, and the one that can succeeds."""
    async with OllamaServer(registry={"big": 10}) as good, OllamaServer(registry={}) as bad:
        done = await run(*PULL, "big", "--instance", bad.url, "--instance", good.url)
        assert done.status == 1
        assert f"{good.url}: success" in done.out
        assert f"{bad.url} could not pull 'big'" in done.err
        assert good.catalogue.find("big") is not None


async def test_servers_cannot_command_the_terminal(run: Run, ollama: OllamaServer) -> None:
    """Control characters in what a server says are made visible, in progress and in errors."""
    ollama.script.next(Status(200, '{"status":"\\u001b[2Jgone"}\n{"error":"\\u001b]0;x\\u0007"}\n'), on="/api/pull")
    done = await run(*PULL, "big", "--instance", ollama.url)
    assert done.status == 1
    assert "\x1b[2J" not in done.out
    assert "\\x1b[2Jgone" in done.out
    assert "\x1b" not in done.err


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        ((*PULL,), 2, "Missing argument 'NAME'"),
        ((*PULL, "big", "--instance", "gpu9"), 2, "unknown instance 'gpu9'"),
        ((*PULL, "big", "--instance", "http://gpu1/v1"), 2, "instances[0]: must end after host and port"),
        ((*PULL, "big", "--instance", "http://127.0.0.1:1"), 1, "http://127.0.0.1:1 could not pull 'big'"),
        ((*PULL, "", "--instance", "http://127.0.0.1:1"), 1, "a model's name is needed"),
        ((*PULL, "big", "--config", "no-such.yaml"), 2, "no such file"),
    ],
)
async def test_wrong_calls_are_told(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], status: int, reason: str
) -> None:
    """What cannot be done says why, in one sentence and with a fitting status."""
    _configure(tmp_path, "http://127.0.0.1:2")
    done = await run(*arguments)
    assert done.status == status
    assert reason in done.err
    assert "Traceback" not in done.err


async def test_nothing_to_pull_to(run: Run, tmp_path: Path) -> None:
    """A configuration without such a hub, servers that are down, and static ones: each is told for what it is."""
    _configure(tmp_path, other={"type": "ollama", "discover_ports": [1]})
    done = await run(*PULL, "big")
    assert done.status == 1
    assert "has found no Ollama server" in done.err
    assert "--instance http://HOST:11434" in done.err
    _configure(tmp_path, "http://127.0.0.1:1")
    assert "no instance of hub 'lan' answers: http://127.0.0.1:1" in (await run(*PULL, "big")).err
    static = {"url": "http://127.0.0.1:1", "probe": False, "models": ["tiny"], "name": "fixed"}
    _configure(tmp_path, static)
    assert "has no instance that a model can be pulled to" in (await run(*PULL, "big")).err
    done = await run(*PULL, "big", "--instance", "fixed")
    assert (done.status, "it is static" in done.err) == (1, True)


async def test_hubs_of_other_kinds_are_left_alone(run: Run, ollama: OllamaServer, tmp_path: Path) -> None:
    """Nothing else in the configuration is started; without an Ollama hub, a server must be named."""
    (tmp_path / "other.py").write_text(
        "from gleitzeit_core.hookspecs import HubType, hookimpl\n"
        "@hookimpl\n"
        "def gleitzeit_register_hubs():\n"
        "    options = 'gleitzeit_core.hub:HubOptions'\n"
        "    return [HubType(name='other', target='no_such_module:Hub', options=options, summary='')]\n"
    )
    config = {"plugins": {"files": ["./other.py"]}, "hubs": {"sandbox": {"type": "other"}}}
    (tmp_path / "gleitzeit.yaml").write_text(json.dumps(config))
    done = await run(*PULL, "big")
    assert done.status == 1
    assert done.err == "Error: the configuration has no hub of type 'ollama'; name a server with --instance URL\n"
    assert (await run(*PULL, "big", "--instance", ollama.url)).status == 0


async def test_the_help_has_examples(run: Run) -> None:
    """`gleitzeit models --help` lists the command, and its own help shows how to call it."""
    assert "download a model to Ollama servers" in (await run("models", "--help")).out
    done = await run(*PULL, "--help")
    assert "gleitzeit models pull llama3.2" in done.out
    assert "--instance" in done.out


@asynccontextmanager
async def _program(*arguments: str, **options: Any) -> AsyncIterator[asyncio.subprocess.Process]:  # noqa: ANN401
    """The program in a process of its own."""
    command = (sys.executable, "-m", "gleitzeit_core.cli", *arguments)
    process = await asyncio.create_subprocess_exec(*command, **options)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_ctrl_c_ends_it_cleanly(ollama: OllamaServer, tmp_path: Path) -> None:
    """The status is 130, the pull's connection is closed so that the server stops, and there is no traceback."""
    ollama.gate = Gate()
    pipe = asyncio.subprocess.PIPE
    arguments = (*PULL, "big", "--instance", ollama.url)
    async with _program(*arguments, cwd=tmp_path, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        assert await process.stdout.readline() == f"{ollama.url}: pulling manifest\n".encode()
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
    await ollama.wait_for(lambda server: server.disconnects == 1)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert ollama.catalogue.find("big") is None


async def test_a_reader_that_leaves_ends_it(ollama: OllamaServer, tmp_path: Path) -> None:
    """When nobody reads the output any more, as with `| head -1`, the pull ends without a traceback."""
    ollama.gate = Gate()
    read, write = os.pipe()
    async with OllamaServer(registry={"big": 10}, gate=Gate()) as other:
        arguments = (*PULL, "big", "--instance", ollama.url, "--instance", other.url)
        async with _program(*arguments, cwd=tmp_path, stdout=write, stderr=asyncio.subprocess.PIPE) as process:
            os.close(write)
            assert await asyncio.to_thread(os.read, read, 7) == b"http://"
            os.close(read)
            ollama.gate.open()
            _, err = await process.communicate()
        await other.wait_for(lambda server: server.disconnects == 1)
    assert process.returncode == 1
    assert err == b""


async def test_a_terminal_gets_a_bar(ollama: OllamaServer, tmp_path: Path) -> None:
    """On a terminal one live bar for each instance shows how much is there, and ends with what became of it."""
    terminal, other_end = pty.openpty()
    arguments = (*PULL, "big", "--instance", ollama.url, "--instance", "http://127.0.0.1:1")
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "150", "NO_COLOR": "1"}
    try:
        async with _program(*arguments, cwd=tmp_path, stdout=other_end, stderr=other_end, env=environment) as process:
            os.close(other_end)
            shown = await asyncio.to_thread(_read_all, terminal)
            await process.wait()
    finally:
        os.close(terminal)
    assert process.returncode == 1
    last = shown.rpartition("\x1b[2K")[0] or shown
    assert ollama.url in last
    assert "4.0/4.0 MB" in shown
    assert "success" in shown
    assert "http://127.0.0.1:1 could not pull 'big'" in shown
    assert "\x1b[?25h" in shown  # The cursor is back.


def _read_all(terminal: int) -> str:
    """What a program writes to a terminal until it ends."""
    data = b""
    while True:
        try:
            more = os.read(terminal, 65536)
        except OSError:  # Linux's way to say that the other end is closed
            return data.decode()
        if not more:
            return data.decode()
        data += more
