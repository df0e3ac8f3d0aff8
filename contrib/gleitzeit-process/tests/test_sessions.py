"""Sessions: an interpreter that is kept between calls, on an instance that nobody else gets."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.dispatch import DEFAULT_ROUTE, Dispatcher
from gleitzeit_core.errors import DeadlineExceeded, InvalidRequest, LeaseExpired, ShuttingDown, UnknownMethod
from gleitzeit_core.testing.clock import ManualClock
from gleitzeit_process.hub import ProcessHub
from gleitzeit_process.options import ProcessOptions
from gleitzeit_python.options import PythonOptions
from gleitzeit_python.provider import PythonProvider

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    Execute = Callable[..., Awaitable[dict[str, Any]]]
    Runners = Callable[..., Any]
    Until = Callable[[Callable[[], object]], Awaitable[None]]


async def begun(provider: PythonProvider, count: int) -> None:
    """Wait until so many calls run in sessions."""
    sessions = provider._sessions._open
    while sum(1 for one in sessions.values() if one.lease is not None and one.lease._turn.locked()) < count:
        await asyncio.sleep(0)


async def close(provider: PythonProvider, name: str = "s", tenant: str = "") -> bool:
    """``python/close_session``."""
    closed: bool = (await provider.execute("python/close_session", {"session": name}, tenant=tenant))["closed"]
    return closed


@pytest.mark.parametrize("interpreter", ["forked", "fresh"])
async def test_what_was_there_is_still_there(of_kind: Runners, execute: Execute, interpreter: str) -> None:
    """Names, modules, files and the working directory are kept from one call to the next."""
    async with of_kind() as provider:
        first = await execute(
            provider, "import os, json\nx = 20\nos.mkdir('d'); os.chdir('d')", session="s", interpreter=interpreter
        )
        second = await execute(provider, "open('f', 'w').write('x')\nx += 1\nx", session="s")
        third = await execute(provider, "[json.dumps(x), os.path.basename(os.getcwd())]", session="s", collect=["d/*"])
        assert [answer["session"] for answer in (first, second, third)] == ["open"] * 3
        assert (second["result"], third["result"], list(third["files"])) == (21, ["21", "d"], ["d/f"])
        assert first["exit_status"] == 0
        assert await close(provider)


async def test_an_exception_does_not_end_it(runners: Runners, execute: Execute) -> None:
    """Nor does a syntax error. Each call tells of its own only."""
    async with runners() as provider:
        await execute(provider, "x = 1\nprint('a')", session="s")
        failed = await execute(provider, "x = 2\nprint('b')\n1/0", session="s")
        wrong = await execute(provider, "x = (", session="s")
        after = await execute(provider, "x", session="s")
    assert (failed["exit_status"], failed["stdout"], failed["session"]) == (1, "b\n", "open")
    assert "line 3, in <module>\n    1/0" in failed["stderr"]
    assert (wrong["exit_status"], wrong["session"]) == (1, "open")
    assert (after["exit_status"], after["stdout"], after["stderr"], after["result"]) == (0, "", "", 2)


async def test_result_of_an_earlier_call_is_none_of_a_later_one(runners: Runners, execute: Execute) -> None:
    """A name ``result`` counts only where it is mentioned."""
    async with runners() as provider:
        assert (await execute(provider, "result = 5", session="s"))["result"] == 5
        assert (await execute(provider, "y = 1", session="s"))["result"] is None
        assert (await execute(provider, "result += 1", session="s"))["result"] == 6


async def test_each_call_has_its_standard_input_and_arguments(runners: Runners, execute: Execute) -> None:
    """They are those of the call."""
    code = "import sys\n[sys.stdin.read(), sys.argv]"
    async with runners() as provider:
        first = await execute(provider, code, session="s", stdin="one", args=["a"])
        second = await execute(provider, code, session="s")
    assert (first["result"], second["result"]) == (["one", ["-c", "a"]], ["", ["-c"]])


async def test_files_are_put_beside_what_is_there(of_kind: Runners, execute: Execute) -> None:
    """New ones replace old ones; what the code has put in the way is not followed."""
    async with of_kind() as provider:
        await execute(provider, "import os\nos.symlink('/etc/passwd', 'a')\nos.symlink('/etc', 'd')", session="s")
        answer = await execute(provider, "open('a').read()", session="s", files={"a": "mine"})
        assert answer["result"] == "mine"
        with pytest.raises(InvalidRequest, match="d/new"):
            await execute(provider, "1", session="s", files={"d/new": "x"})
        assert (await execute(provider, "1", session="s"))["result"] == 1


@pytest.mark.parametrize(
    ("code", "status", "killed_by"),
    [
        ("import sys; sys.exit(4)", 4, ""),
        ("import os; os._exit(5)", 5, ""),
        ("import ctypes; ctypes.string_at(0)", -11, "SIGSEGV"),
        ("import os; os.close(3)", 1, ""),
    ],
)
async def test_its_end_is_told(of_kind: Runners, execute: Execute, code: str, status: int, killed_by: str) -> None:
    """When the interpreter ends the session does; the next call of that name begins another."""
    async with of_kind() as provider:
        await execute(provider, "x = 1", session="s")
        last = await execute(provider, code, session="s")
        assert (last["session"], last["exit_status"], last["killed_by"]) == ("ended", status, killed_by)
        again = await execute(provider, "'x' in globals()", session="s")
        assert (again["session"], again["result"]) == ("open", False)


async def test_time_out_ends_it(of_kind: Runners, execute: Execute) -> None:
    """With what it said until then."""
    async with of_kind() as provider:
        await execute(provider, "x = 1", session="s")
        late = await execute(provider, "print('so far')\nwhile True: pass", session="s", timeout_s=0.3)
        assert (late["timed_out"], late["stdout"], late["session"]) == (True, "so far\n", "ended")
        assert (await execute(provider, "1"))["result"] == 1


async def test_it_has_its_instance_alone(runners: Runners, execute: Execute) -> None:
    """While it is open others wait, or use another instance; when it is closed they get this one, clean."""
    async with runners(max_total=1) as provider:
        await execute(provider, "import sys\nsys.mark = 1\nopen('mark', 'w').close()", session="s")
        other = asyncio.create_task(execute(provider, "import os, sys\n[os.listdir(), hasattr(sys, 'mark')]"))
        while not provider.dispatcher.shell.admission.waiting:
            await asyncio.sleep(0)
        assert (await execute(provider, "sys.mark", session="s"))["result"] == 1
        assert not other.done()
        assert await close(provider)
        assert (await other)["result"] == [[], False]


async def test_daemons_of_a_session_end_with_it(
    of_kind: Runners, execute: Execute, running: Callable[[], set[int]]
) -> None:
    """What it has left running between calls is killed when it is closed."""
    async with of_kind() as provider:
        await execute(provider, "1")
        before = running()
        daemon = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(1000)\n"
        assert (await execute(provider, daemon, session="s"))["session"] == "open"
        assert len(running() - before) >= 1
        await close(provider)
        assert (await execute(provider, "1"))["result"] == 1


async def test_interpreter_that_ends_between_calls(
    of_kind: Runners, execute: Execute, folder: Path, until: Until
) -> None:
    """What it has left is removed at once, and the next call finds a new one."""
    async with of_kind() as provider:
        code = "import os, threading\nopen('left', 'w').close()\nthreading.Timer(0.05, os._exit, (3,)).start()"
        await execute(provider, code, session="s")
        await until(lambda: not list(folder.rglob("left")))
        answer = await execute(provider, "import os\n[os.listdir(), 'threading' in globals()]", session="s")
        assert (answer["result"], answer["session"]) == ([[], False], "open")


async def test_one_call_at_a_time(runners: Runners, execute: Execute) -> None:
    """Calls of the same name wait for each other, in order."""
    async with runners() as provider:
        await execute(provider, "seen = []", session="s")
        code = "import time\ntime.sleep(0.02)\nseen.append({})\nseen[-1]"
        answers = await asyncio.gather(*(execute(provider, code.format(n), session="s") for n in range(5)))
        assert [answer["result"] for answer in answers] == list(range(5))
        assert (await execute(provider, "seen", session="s"))["result"] == list(range(5))


async def test_sessions_belong_to_their_tenant(runners: Runners) -> None:
    """Two tenants with a session of the same name have two."""
    async with runners(max_total=2) as provider:

        async def run(code: str, tenant: str) -> object:
            return (await provider.execute("python/execute", {"code": code, "session": "s"}, tenant=tenant))["result"]

        await run("x = 'of a'", "a")
        assert await run("'x' in globals()", "b") is False
        assert await run("x", "a") == "of a"
        assert await close(provider, tenant="b")
        assert not await close(provider, tenant="b")
        assert await run("x", "a") == "of a"


async def test_only_so_many(runners: Runners, execute: Execute) -> None:
    """One more than a tenant may have open is refused, until one is closed."""
    async with runners({"max_sessions": 2}, max_total=3) as provider:
        for name in "ab":
            await execute(provider, "1", session=name)
        with pytest.raises(InvalidRequest, match="2 sessions are open already; at most 2"):
            await execute(provider, "1", session="c")
        assert await close(provider, "a")
        assert (await execute(provider, "1", session="c"))["result"] == 1


async def test_unused_ones_are_closed(runners: Runners, execute: Execute) -> None:
    """After a while without a call the instance is free again for others."""
    async with runners({"session_ttl_s": 0.2}, max_total=1) as provider:
        await execute(provider, "x = 1", session="s")
        async with asyncio.timeout(20):
            assert (await execute(provider, "2"))["result"] == 2
        assert (await execute(provider, "'x' in globals()", session="s"))["result"] is False


async def test_cancelled_call_ends_it(of_kind: Runners, execute: Execute) -> None:
    """The interpreter is killed, and the instance is free."""
    async with of_kind() as provider:
        await execute(provider, "x = 1", session="s")
        parameters = {"code": "while True: pass", "session": "s"}
        with pytest.raises(DeadlineExceeded):
            await provider.execute("python/execute", parameters, timeout_s=0.3)
        async with asyncio.timeout(20):
            assert (await execute(provider, "3"))["result"] == 3
        assert not await close(provider)


async def test_cancelled_while_it_waits_for_its_turn(runners: Runners, execute: Execute) -> None:
    """Whoever leaves before anything of theirs has begun takes nobody's session away."""
    async with runners() as provider:
        await execute(provider, "x = 1", session="s")
        first = asyncio.create_task(execute(provider, "import time\ntime.sleep(0.3)\nx", session="s"))
        await asyncio.sleep(0)
        second = asyncio.create_task(execute(provider, "x = 2", session="s"))
        await asyncio.sleep(0.05)
        second.cancel()
        await asyncio.wait([second])
        assert (await first)["result"] == 1
        assert (await execute(provider, "x", session="s"))["result"] == 1


async def test_no_parts(runners: Runners) -> None:
    """The answer of a call in a session comes whole; who wants parts is told so."""
    async with runners() as provider:
        with pytest.raises(InvalidRequest, match=r"^python/execute in a session does not answer in parts$"):
            provider.stream("python/execute", {"code": "1", "session": "s"})


async def test_the_name_inside_is_no_method(runners: Runners) -> None:
    """What sessions are called inside cannot be asked for from outside, nor is it among the names that are known."""
    async with runners() as provider:
        known = sorted(method.name for method in provider.methods)
        for name in ("python/execute in a session", "python/execut"):
            with pytest.raises(UnknownMethod, match=f"known: {', '.join(known)}(;|$)"):
                await provider.execute(name, {"code": "1", "session": "s"})


async def test_open_sessions_end_with_the_provider(runners: Runners, execute: Execute) -> None:
    """Nobody has to close one: that nothing is left is looked at after each test."""
    async with runners() as provider:
        await execute(provider, "x = 1", session="s")
        assert "1 open" in repr(provider._sessions)


async def test_an_idle_one_does_not_hold_up_a_shutdown(runners: Runners, execute: Execute) -> None:
    """It is closed when nothing new is taken any more, and what runs in another is waited for."""
    async with runners(max_total=2) as provider, asyncio.timeout(30):
        await execute(provider, "x = 1", session="idle")
        await execute(provider, "x = 1", session="busy")
        call = asyncio.create_task(execute(provider, "import time\ntime.sleep(0.3)\nx", session="busy"))
        await begun(provider, 1)
        await provider.dispatcher.drain(1e6)
        assert (await call)["result"] == 1
        assert "0 open" in repr(provider._sessions)
        assert provider.dispatcher.active == 0
        with pytest.raises(ShuttingDown):
            await execute(provider, "x", session="idle")


async def test_a_call_may_take_longer_than_a_session_lasts_without_one(
    hub_options: dict[str, Any], execute: Execute, tmp_path: Path
) -> None:
    """Its lease lasts as long as any call may take, and the session after that; its route is that of the method."""
    clock = ManualClock()
    dispatcher = Dispatcher([replace(DEFAULT_ROUTE, methods=("python/execute",), timeout_s=None)], clock=clock)
    provider = PythonProvider(PythonOptions(session_ttl_s=100, max_timeout_s=1000))
    provider.bind(dispatcher)
    await dispatcher.shell.add_hub(ProcessHub(ProcessOptions.model_validate(hub_options)))
    go = tmp_path / "go"
    code = f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)\nx"
    try:
        await execute(provider, "x = 1", session="s")
        call = asyncio.create_task(execute(provider, code, session="s", timeout_s=1000))
        await begun(provider, 1)
        clock.advance(990)
        go.touch()
        assert (await call)["result"] == 1
        clock.advance(99)
        assert (await execute(provider, "x", session="s"))["result"] == 1
    finally:
        await dispatcher.aclose()
        await provider.close()


async def test_its_provider_ends_while_others_use_the_hub(hub_options: dict[str, Any], execute: Execute) -> None:
    """Calls in its sessions are ended, those that wait are sent away, and the instance is there for the others."""
    hub = ProcessHub(ProcessOptions.model_validate(hub_options))
    async with PythonProvider(hub=hub) as other, asyncio.timeout(30):
        async with PythonProvider(hub=hub) as provider:
            await execute(provider, "x = 1", session="s")
            calls = [asyncio.create_task(execute(provider, "while True: pass", session=name)) for name in ("s", "s")]
            await begun(provider, 1)
            calls.append(asyncio.create_task(execute(provider, "1", session="waits for an instance")))
            while not provider.dispatcher.shell.admission.waiting:
                await asyncio.sleep(0)
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(error) for error in errors] == [LeaseExpired, ShuttingDown, ShuttingDown]
        assert (await execute(other, "'x' in globals()"))["result"] is False


async def test_none_at_all(runners: Runners, execute: Execute) -> None:
    """Where the options allow none, whoever wants one is told so."""
    async with runners({"max_sessions": 0}) as provider:
        with pytest.raises(InvalidRequest, match="the option max_sessions is 0"):
            await execute(provider, "1", session="s")
