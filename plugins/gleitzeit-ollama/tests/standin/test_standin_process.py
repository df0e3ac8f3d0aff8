"""The stand-in in a process of its own: steered from outside, killed, stopped, and never left over."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from gleitzeit_ollama.testing import (
    Busy,
    DropAfter,
    Fault,
    Hang,
    OllamaProcess,
    ProcessFailed,
    SlowLoad,
    StallAfter,
    Status,
    __main__,
)

from .calls import CHAT, PLAIN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

PARENT = """
import asyncio, sys
from gleitzeit_ollama.testing import OllamaProcess

async def main():
    async with OllamaProcess() as ollama:
        if "suspend" in sys.argv:
            ollama.suspend()
        print(ollama.pid, ollama.url, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client without a time limit of its own, and without connections to use again."""
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:
        yield session


async def _ask(client: aiohttp.ClientSession, url: str, body: object = PLAIN) -> tuple[int, Any]:
    async with client.post(f"{url}/api/chat", json=body) as response:
        return response.status, json.loads(await response.read())


@contextmanager
def _watched(pid: int) -> Iterator[asyncio.Event]:
    """Yield an event that is set when that process has ended, whoever's child it is."""
    ended, handle = asyncio.Event(), os.pidfd_open(pid)
    loop = asyncio.get_running_loop()
    loop.add_reader(handle, ended.set)
    try:
        yield ended
    finally:
        loop.remove_reader(handle)
        os.close(handle)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


async def _run(*arguments: str) -> tuple[int | None, str, str]:
    """Run the module by hand and return its status and what it wrote."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "gleitzeit_ollama.testing", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(),
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_answers_and_counts(client: aiohttp.ClientSession) -> None:
    """It answers with the models and the text it was given, and tells its counts."""
    async with OllamaProcess(models=["smollm2", "toolsy"], reply="at your service") as ollama:
        status, answer = await _ask(client, ollama.url)
        async with client.get(f"{ollama.url}/api/tags") as response:
            names = {row["name"] for row in (await response.json())["models"]}
        state = await ollama.state()
        assert repr(ollama) == f"<OllamaProcess running, pid {ollama.pid}, {ollama.url}>"
    assert (status, answer["message"]["content"]) == (200, "at your service")
    assert names == {"smollm2:latest", "toolsy:latest"}
    wanted = {"requests": 2, "finished": 2, "in_flight": 0, "max_in_flight": 1, "tokens": 3, "loads": 1}
    assert wanted.items() <= state.items()
    assert ollama.returncode == -signal.SIGKILL


async def test_gate_and_wait(client: aiohttp.ClientSession) -> None:
    """Tokens go out as allowed, and counts can be waited for."""
    async with OllamaProcess(gate=True, num_parallel=2, reply="one two") as ollama:
        asking = [asyncio.create_task(_ask(client, ollama.url)) for _ in range(3)]
        state = await ollama.wait_for(running=2, queued=1, waiting_tokens=2)
        assert (state["in_flight"], state["tokens"]) == (3, 0)
        await ollama.allow(2)
        await ollama.wait_for(tokens=2)
        await ollama.open_gate()
        assert {status for status, _ in await asyncio.gather(*asking)} == {200}
        await ollama.wait_for(finished=3, in_flight=0)


async def test_faults(client: aiohttp.ClientSession) -> None:
    """Faults are set, met, released and cleared from outside."""
    async with OllamaProcess(faults=[Busy(3)]) as ollama:
        assert (await _ask(client, ollama.url))[0] == 503
        await ollama.next(Status(500, {"error": "oops"}), times=2)
        assert [(await _ask(client, ollama.url))[0] for _ in range(3)] == [500, 500, 503]
        await ollama.clear()
        await ollama.always(Hang())
        asking = asyncio.create_task(_ask(client, ollama.url))
        await ollama.wait_for(held=1)
        await ollama.release()
        assert (await asking)[0] == 200
        await ollama.clear()
        await ollama.next(Status(404), on="/api/tags")
        async with client.get(f"{ollama.url}/api/tags") as response:
            assert response.status == 404


async def test_disconnects_are_counted(client: aiohttp.ClientSession) -> None:
    """A client that leaves is seen from outside too."""
    async with OllamaProcess() as ollama:
        await ollama.next(StallAfter(n_parts=1))
        async with client.post(f"{ollama.url}/api/chat", json=CHAT) as response:
            await response.content.readline()
        assert (await ollama.wait_for(disconnects=1, in_flight=0))["running"] == 0


async def test_what_cannot_be_sent_is_refused() -> None:
    """Wrong requests to the test's own path are answered with the reason."""
    async with OllamaProcess() as ollama:
        with pytest.raises(ValueError, match=r"cannot wait for happiness=1; counts: in_flight, .*"):
            await ollama.wait_for(happiness=1)
        with pytest.raises(ValueError, match="not started with a gate"):
            await ollama.allow(1)
        with pytest.raises(ValueError, match="times must be at least 1, got 0"):
            await ollama.next(Busy(), times=0)
        with pytest.raises(ValueError, match="cannot be sent to another process"):
            await ollama.next(Fault())


async def test_kill_cuts_streams_and_refuses(client: aiohttp.ClientSession) -> None:
    """After SIGKILL a stream ends in mid-body and new connections are refused."""
    async with OllamaProcess(gate=True, reply="one two three") as ollama:
        async with client.post(f"{ollama.url}/api/chat", json=CHAT) as response:
            await ollama.allow(1)
            await response.content.readline()
            ollama.kill()
            with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientOSError)):
                await response.read()
        assert await ollama.wait() == -signal.SIGKILL
        with pytest.raises(aiohttp.ClientConnectorError):
            await _ask(client, ollama.url)
        assert repr(ollama).startswith("<OllamaProcess ended with status -9, pid ")
        ollama.kill()  # which is no error


async def test_terminate_ends_well(client: aiohttp.ClientSession) -> None:
    """SIGTERM cuts what is in flight and ends with status 0."""
    async with OllamaProcess(faults=[Hang()]) as ollama:
        asking = asyncio.create_task(_ask(client, ollama.url))
        await ollama.wait_for(held=1)
        ollama.terminate()
        assert await ollama.wait() == 0
        with pytest.raises((aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)):
            await asking


async def test_suspend_and_resume(client: aiohttp.ClientSession) -> None:
    """While it is stopped a request waits; afterwards it is answered."""
    async with OllamaProcess() as ollama:
        ollama.suspend()
        # Until it is stopped in fact it might still answer.
        await asyncio.to_thread(os.waitid, os.P_PID, ollama.pid, os.WSTOPPED | os.WNOWAIT)
        asking = asyncio.create_task(_ask(client, ollama.url))
        reader, writer = await asyncio.open_connection("127.0.0.1", ollama.port)
        assert not reader.at_eof()
        assert not asking.done()
        ollama.resume()
        assert (await asking)[0] == 200
        writer.close()


@pytest.mark.parametrize("arguments", [(), ("suspend",)])
async def test_dies_with_a_killed_parent(arguments: Sequence[str]) -> None:
    """When the parent is killed by SIGKILL, nothing is left, even of a child that was stopped."""
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT, *arguments), stdout=subprocess.PIPE, env=_environment()
    )
    assert parent.stdout is not None
    pid, url = (await parent.stdout.readline()).split()
    with _watched(int(pid)) as ended:
        parent.kill()
        await parent.wait()
        await ended.wait()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", int(url.rpartition(b":")[2]))


async def test_dies_at_the_end_of_its_input() -> None:
    """With --die-with-parent, closing its standard input ends it, which holds on every system."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "gleitzeit_ollama.testing", "--die-with-parent"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=_environment(),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert (await process.stdout.readline()).startswith(b"http://127.0.0.1:")
    process.stdin.write(b"anything is ignored")
    process.stdin.close()
    assert await process.wait() == 0


async def test_by_hand_it_needs_no_input() -> None:
    """Without that flag it runs in the background, with nothing on its standard input."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "gleitzeit_ollama.testing"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=_environment(),
    )
    assert process.stdout is not None
    url = (await process.stdout.readline()).decode().strip()
    async with aiohttp.ClientSession() as session:
        assert (await _ask(session, url))[0] == 200
    process.terminate()
    assert await process.wait() == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--models", "a b"], "'a b' is not a model's name"),
        (["--fault", '{"kind": "flood"}'], "unknown fault 'flood'; there are: status, busy"),
        (["--fault", '{"kind": "busy", "x": 1}'], "fault 'busy' takes no x=1; options: retry_after_s"),
        (["--fault", "{"], "--fault"),
        (["--pullable", "{"], "--pullable"),
        (["--gate", "--token-delay-ms", "5"], "not allowed with argument"),
        (["--host", "no.such.host.example"], "error: "),
        (["--token-delay-ms=-1"], "interval_s must not be negative"),
        (["--num-parallel", "0"], "num_parallel must be at least 1, got 0"),
    ],
)
def test_wrong_arguments(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong argument is a sentence and status 2, and no URL is printed."""
    with pytest.raises(SystemExit, match="2"):
        __main__.main(arguments)
    out, err = capsys.readouterr()
    assert (out, complaint in err) == ("", True)


@pytest.mark.parametrize("value", ["", "127.0.0.1", "127.0.0.1:x", "0.0.0.0:99999999"])
def test_serve_needs_an_address(
    value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Like the real server it is told by OLLAMA_HOST where to listen; what is no address and port is refused."""
    monkeypatch.setenv("OLLAMA_HOST", value)
    with pytest.raises(SystemExit, match="2"):
        __main__.main(["serve"])
    out, err = capsys.readouterr()
    assert (out, "error: " in err) == ("", True)


async def test_taken_port_is_a_sentence() -> None:
    """A port that is taken ends it with status 2 and one sentence, never a traceback."""
    async with OllamaProcess() as ollama:
        status, out, err = await _run("--port", str(ollama.port))
    assert (status, out) == (2, "")
    assert "Address already in use" in err
    assert "Traceback" not in err


async def test_failed_start_says_why() -> None:
    """A process that cannot start is an error with what it wrote, and leaves nothing behind."""
    ollama = OllamaProcess(models=["a b"])
    with pytest.raises(ProcessFailed, match=r"(?s)ended with status 2: .*'a b' is not a model's name"):
        await ollama.start()
    await ollama.close()
    assert ollama.returncode == 2
    with pytest.raises(RuntimeError, match="was started before"):
        await ollama.start()


async def test_another_can_take_the_place(client: aiohttp.ClientSession) -> None:
    """After a kill, a new process can listen on the same port at once."""
    async with OllamaProcess() as first:
        assert (await _ask(client, first.url))[0] == 200
        first.kill()
        await first.wait()
        async with OllamaProcess(port=first.port) as second:
            assert second.url == first.url
            assert (await _ask(client, second.url))[0] == 200


async def test_not_started_is_an_error() -> None:
    """Before the start there is nothing to ask or to kill, and closing does no harm."""
    ollama = OllamaProcess()
    await ollama.close()
    assert repr(ollama) == "<OllamaProcess not started>"
    with pytest.raises(ProcessFailed, match="not started"):
        ollama.kill()
    with pytest.raises(ProcessFailed, match="not running"):
        await ollama.state()


async def test_pullable_and_pace(client: aiohttp.ClientSession) -> None:
    """What it may pull is an option, and so is a pause before each token."""
    async with OllamaProcess(pullable={"tiny": 100}, token_delay_ms=0.1, port=0, host="127.0.0.1") as ollama:
        async with client.post(f"{ollama.url}/api/pull", json={"model": "tiny", "stream": False}) as response:
            assert await response.json() == {"status": "success"}
        assert (await _ask(client, ollama.url, {**PLAIN, "model": "tiny"}))[0] == 200


async def test_slow_load_from_outside(client: aiohttp.ClientSession) -> None:
    """A load that is held is released from outside like everything that holds."""
    async with OllamaProcess() as ollama:
        await ollama.next(SlowLoad())
        asking = asyncio.create_task(_ask(client, ollama.url))
        await ollama.wait_for(queued=1)
        await ollama.release()
        assert (await asking)[0] == 200


async def test_drop_from_outside(client: aiohttp.ClientSession) -> None:
    """A connection is cut by another process as by one's own."""
    async with OllamaProcess(faults=[DropAfter(0, reset=True)]) as ollama:
        with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)):
            await _ask(client, ollama.url)


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` explains all options."""
    with pytest.raises(SystemExit, match="0"):
        __main__.main(["--help"])
    text = capsys.readouterr().out
    for option in ("host", "port", "models", "num-parallel", "max-queue", "reply", "pullable", "gate", "fault"):
        assert f"--{option}" in text
