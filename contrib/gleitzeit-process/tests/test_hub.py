"""The hub's own work: processes that come, go, die and are replaced; and that none is left, whoever dies."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from gleitzeit_core.errors import FailureKind, InstanceFailure, NoCapableInstance, RequestError
from gleitzeit_core.manager import ResourceManager
from gleitzeit_process.child import Child, PipeChannel
from gleitzeit_process.hub import ProcessHub
from gleitzeit_process.options import ProcessOptions
from gleitzeit_python.provider import PythonProvider
from gleitzeit_python.runner import AgentOptions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Execute = Callable[..., Awaitable[dict[str, Any]]]
    Runners = Callable[..., Any]
    Until = Callable[[Callable[[], object]], Awaitable[None]]

OWNER = """
import asyncio, sys
from gleitzeit_process.hub import ProcessHub
from gleitzeit_process.options import ProcessOptions
from gleitzeit_python.provider import PythonProvider

CODE = '''
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(1000)
    os._exit(0)
os.wait()
print(os.getppid(), flush=True)
time.sleep(1000)
'''

async def main():
    hub = ProcessHub(ProcessOptions(directory=sys.argv[1], min_total=2, max_total=2))
    async with PythonProvider(hub=hub) as provider:
        async for part in provider.stream("python/execute", {"code": CODE, "files": {"a": "x"}}):
            print(part["stdout"], end="", flush=True)

asyncio.run(main())
"""


async def test_nothing_runs_before_it_is_wanted(
    runners: Runners, execute: Execute, running: Callable[[], set[int]]
) -> None:
    """The first request has its process started, and that serves the next ones."""
    before = running()
    async with runners(max_total=4) as provider:
        assert running() == before
        first, second = await execute(provider, "1"), await execute(provider, "2")
    assert first["instance"] == second["instance"]


async def test_without_reuse_each_run_has_a_process_of_its_own(runners: Runners, execute: Execute) -> None:
    """Where nothing can be made sure of, and the code is not trusted, one use is the last."""
    async with runners(reuse=False) as provider:
        answers = [await execute(provider, "import os\nos.getppid()") for _ in range(3)]
        await asyncio.gather(*(execute(provider, "1") for _ in range(3)))
    assert len({answer["result"] for answer in answers}) == 3
    assert len({answer["instance"] for answer in answers}) == 3


async def test_details_say_what_it_is(runners: Runners, execute: Execute) -> None:
    """Its instance tells what the agent said, the process's id, and whether it is trusted."""
    async with runners() as provider:
        await execute(provider, "1")
        details = provider.dispatcher.reports()[0].instance.details
    assert details["trusted"] is True
    assert details["runner"]["separate_user"] is False
    assert details["runner"]["pid"] == details["pid"]


async def test_users_are_never_shared(runners: Runners, first_user: int) -> None:
    """Each process has a user of its own, one whose process is gone may be had again."""
    if os.geteuid() != 0:
        return  # there is but one user
    code = {"code": "import os\nos.getuid()"}
    async with runners(first_user=first_user, max_total=3, reuse=False) as provider:
        used = await asyncio.gather(*(provider.execute("python/execute", code) for _ in range(30)))
        assert {answer["result"] for answer in used} <= set(range(first_user, first_user + 3))
        by_instance = {answer["instance"]: answer["result"] for answer in used}
        assert len(set(by_instance.values())) == len(by_instance)


async def test_tenants_do_not_share_a_process(runners: Runners) -> None:
    """One that has served a tenant serves no other; with no room for more, it makes room."""
    async with runners(max_total=1) as provider, asyncio.timeout(30):

        async def run(tenant: str) -> str:
            answer = await provider.execute("python/execute", {"code": "1"}, tenant=tenant)
            return str(answer["instance"])

        first, again, other, nobody = await run("a"), await run("a"), await run("b"), await run("")
        assert first == again
        assert len({first, other, nobody}) == 3
        assert len(provider.dispatcher.reports()) == 1


async def test_one_that_dies_is_replaced(runners: Runners, execute: Execute, until: Until) -> None:
    """The next request does not notice that the process was killed while it had nothing to do."""
    async with runners() as provider, asyncio.timeout(30):
        await execute(provider, "1")
        (report,) = provider.dispatcher.reports()
        os.kill(report.instance.handle.pid, signal.SIGKILL)
        await until(lambda: report.instance.handle.status is not None)
        assert (await execute(provider, "2"))["result"] == 2
        assert provider.dispatcher.reports()[0].instance.id != report.instance.id


async def test_one_that_dies_is_found_by_its_check(runners: Runners, execute: Execute, until: Until) -> None:
    """Nobody has to ask for it."""
    async with runners(min_total=1) as provider, asyncio.timeout(30):
        await execute(provider, "1")
        (report,) = provider.dispatcher.reports()
        os.kill(report.instance.handle.pid, signal.SIGKILL)
        await until(lambda: report.instance.handle.status is not None)
        hub = provider.dispatcher.shell.hubs["process"]
        await hub.check(report.instance)
        await until(lambda: [r.state for r in provider.dispatcher.reports()] == ["ready"])
        assert provider.dispatcher.reports()[0].instance.id != report.instance.id


async def test_one_that_dies_at_work_is_told(runners: Runners, execute: Execute) -> None:
    """What may have run is not run again; its caller learns that it is lost."""
    async with runners() as provider, asyncio.timeout(30):
        await execute(provider, "1")
        stream = provider.stream("python/execute", {"code": "print('at work')\nimport time\ntime.sleep(100)"})
        await anext(stream)
        os.kill(provider.dispatcher.reports()[0].instance.handle.pid, signal.SIGKILL)
        with pytest.raises(InstanceFailure, match="the runner is gone") as caught:
            async for _ in stream:
                pass
        assert (caught.value.kind, caught.value.started) == (FailureKind.LOST, True)
        assert (await execute(provider, "2"))["result"] == 2


@pytest.mark.parametrize(
    ("python", "message"),
    [
        ("/nowhere/python3", "No such file"),
        ("/bin/false", "the runner ended before it was ready|the process is gone"),
        ("echo", "what answers is no runner"),
    ],
)
async def test_interpreter_that_is_none(
    runners: Runners, execute: Execute, tmp_path: Path, python: str, message: str
) -> None:
    """Those who wait learn why there is no instance, and the hub is said to be in trouble."""
    (tmp_path / "echo").write_text("#!/bin/sh\nexec cat\n")
    (tmp_path / "echo").chmod(0o755)
    async with runners(python=str(tmp_path / python)) as provider, asyncio.timeout(30):
        with pytest.raises(RequestError, match=message):
            await execute(provider, "1")
        assert provider.dispatcher.shell.hubs["process"].problem


async def test_module_that_cannot_be_preloaded(runners: Runners, execute: Execute) -> None:
    """It is named, with its place in the configuration, to those who wait and in the hub's problem."""
    message = r"hubs\.process\.preload: module 'no_such_module' cannot be imported: ModuleNotFoundError"
    async with runners(preload=["no_such_module"]) as provider, asyncio.timeout(30):
        with pytest.raises(RequestError, match=message):
            await execute(provider, "1")
        assert re.search(message, provider.dispatcher.shell.hubs["process"].problem)


async def test_agent_that_never_gets_ready(runners: Runners, execute: Execute) -> None:
    """A creation that takes too long has failed, and leaves no process."""
    async with runners(python="/bin/sleep", create_timeout_s=0.3) as provider, asyncio.timeout(30):
        with pytest.raises(RequestError):
            await execute(provider, "1")


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5, 8, 13, 21, 34])
async def test_creation_that_is_cancelled(folder: Path, steps: int) -> None:
    """Wherever that is, neither a process nor a folder is left: both are looked for after each test."""
    for _ in range(5):
        starting = asyncio.create_task(Child.start(sys.executable, AgentOptions(), str(folder), timeout_s=20))
        for _ in range(1 + steps):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait([starting])
        assert starting.cancelled()


async def test_channel_after_its_end(folder: Path) -> None:
    """A closed channel says so: it takes nothing and gives nothing."""
    child, _ = await Child.start(sys.executable, AgentOptions(), str(folder), timeout_s=20)
    assert repr(child.channel) == f"<PipeChannel to process {child.pid}>"
    await child.channel.aclose()
    await child.channel.aclose()
    assert await child.channel.receive() == b""
    with pytest.raises(InstanceFailure, match="gone"):
        await child.channel.send(b"x")
    await child.stop()
    await child.stop()
    assert repr(child) == f"<Child {child.pid}, status 0>"
    with pytest.raises(InstanceFailure, match="gone"):
        await PipeChannel().send(b"x")


async def test_what_an_agent_complains_of_is_logged_within_reason(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its standard error goes to the log, and no more of it than a person would read."""
    child, _ = await Child.start(sys.executable, AgentOptions(), str(folder), timeout_s=20)
    await child.channel.send(b"\xff" * 100)  # a frame of four gigabytes
    while child.status is None:
        await asyncio.sleep(0.01)
    await child.stop()
    assert "BadFrame" in caplog.text
    assert len(caplog.records) <= 100


@pytest.mark.attacks
def test_killed_owner_leaves_nothing(folder: Path) -> None:
    """Its processes notice, end what they have started, also what left its session, and remove their files."""
    with subprocess.Popen((sys.executable, "-c", OWNER, str(folder)), stdout=subprocess.PIPE, text=True) as owner:
        try:
            printed = owner.stdout
            assert printed is not None
            fork_server = int(printed.readline())
            agents = _children(owner.pid)
            family = {*agents, *(child for agent in agents for child in _children(agent)), *_children(fork_server)}
            working = {pid for pid in _all() if _works_in(pid, folder)}
            assert len(agents) == 2
            assert len(working) == 2  # the code, and what it has sent away
            assert list(folder.rglob("a"))
        finally:
            owner.kill()
    while any(Path(f"/proc/{pid}").exists() for pid in family | working) or list(folder.iterdir()):
        pass


def _all() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def _children(pid: int) -> list[int]:
    return [int(word) for path in Path(f"/proc/{pid}/task").glob("*/children") for word in path.read_text().split()]


def _works_in(pid: int, folder: Path) -> bool:
    try:
        return Path(f"/proc/{pid}/cwd").readlink().is_relative_to(folder)
    except OSError:
        return False


async def test_without_a_configuration(tmp_path: Path, others: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is configured code runs in processes, and none is started before."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gleitzeit.yaml").write_text(f"plugins: {{disabled: {others}}}\n")
    async with ResourceManager.from_config(tmp_path / "gleitzeit.yaml") as manager:
        assert not [r for r in manager.instances() if r.instance.kind == "process"]
        answer = await manager.execute("python/execute", {"code": "print(6*7)"})
        assert answer["stdout"] == "42\n"
        assert answer["instance"].startswith("process-")


async def test_by_configuration(tmp_path: Path) -> None:
    """By name, with a route; a request for what no hub has is told so."""
    (tmp_path / "gleitzeit.yaml").write_text(
        "hubs:\n  mine: {type: process, max_total: 1, idle_ttl_s: 60}\n"
        "routes:\n  - {methods: ['python/*'], hubs: [mine]}\n"
    )
    async with ResourceManager.from_config(tmp_path / "gleitzeit.yaml") as manager:
        assert (await manager.execute("python/execute", {"code": "1"}))["result"] == 1
        assert (await manager.execute("python/execute", {"code": "2", "session": "s"}))["result"] == 2
        with pytest.raises(NoCapableInstance):
            await manager.execute("python/execute", {"code": "1"}, tags=["gpu"])


@pytest.mark.parametrize(
    "wrong",
    [{"environment": {"A=": "x"}}, {"environment": {"A": "\0"}}, {"first_user": 0}, {"min_total": 5, "max_total": 4}],
)
def test_wrong_options(wrong: dict[str, Any]) -> None:
    """They are found before anything starts."""
    with pytest.raises(ValidationError):
        ProcessOptions.model_validate(wrong)


async def test_use_without_a_manager() -> None:
    """The hub alone, with its defaults, is enough for a provider."""
    async with PythonProvider(hub=ProcessHub()) as provider:
        assert (await provider.execute("python/execute", {"code": "1"}))["result"] == 1
