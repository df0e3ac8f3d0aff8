"""The agent by itself, on every Python that is found here: what it says to whom, and what it leaves."""

from __future__ import annotations

import ast
import json
import math
import os
import select
import selectors
import shutil
import signal
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_python import runner
from gleitzeit_python.agent import cleaning, frames, pipes, system

if TYPE_CHECKING:
    from collections.abc import Callable

    Start = Callable[..., Any]


# Nobody else's, nor that of another run of these tests.
USER = 1_100_000 + os.getpid() % 100_000


def pythons() -> list[str]:
    """All interpreters here that an agent runs on: this one, the system's, and those of a version manager."""
    homes = [Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"]
    found = {
        sys.executable,
        *(shutil.which(f"python3.{minor}") or "" for minor in range(8, 20)),
        shutil.which("python3") or "",
    }
    found |= {str(path) for home in homes for path in home.glob("3.*/bin/python3")}
    by_version: dict[tuple[int, ...], str] = {}
    for path in sorted(found - {""}):
        command = [path, "-c", "import sys; print(sys.executable, *sys.version_info[:3])"]
        executable, *version = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split() or [
            ""
        ]
        if tuple(map(int, version)) >= (3, 8):
            by_version.setdefault(tuple(map(int, version)), executable)
    return [by_version[version] for version in sorted(by_version)]


EVERY = pytest.mark.parametrize("python", pythons())


@pytest.mark.parametrize(
    "part", [file.name for file in resources.files("gleitzeit_python.agent").iterdir() if file.name.endswith(".py")]
)
def test_nothing_newer_than_python_3_8(part: str) -> None:
    """The syntax of each part is that of Python 3.8."""
    text = (resources.files("gleitzeit_python.agent") / part).read_text("utf-8")
    ast.parse(text, feature_version=(3, 8))


@EVERY
@pytest.mark.parametrize("fresh", [False, True])
def test_runs_on(start: Start, python: str, *, fresh: bool) -> None:
    """Output, result, exception, exit status, signal, time-out, files: on each version."""
    agent = start(python)
    told = agent.run(1, "import sys\nprint('out')\nprint('err', file=sys.stderr)\n6*7", fresh=fresh)
    assert (told.text(frames.STDOUT), told.text(frames.STDERR)) == (b"out\n", b"err\n")
    assert json.loads(told.text(frames.RESULT))["result"] == "42"
    assert (told.last["exit_status"], told.last["clean"], told.last["left"]) == (0, True, [])
    assert agent.run(2, "1/0", fresh=fresh).text(frames.STDERR).endswith(b"ZeroDivisionError: division by zero\n")
    assert agent.run(3, "import sys; sys.exit(3)", fresh=fresh).last["exit_status"] == 3
    assert agent.run(4, "import ctypes; ctypes.string_at(0)", fresh=fresh).last["killed_by"] == "SIGSEGV"
    late = agent.run(5, "print('x')\nwhile True: pass", fresh=fresh, timeout_s=1)
    assert (late.last["timed_out"], late.text(frames.STDOUT), late.last["clean"]) == (True, b"x\n", True)
    agent.write(frames.file_frames("d/a", 6, b"abc"))
    told = agent.run(6, "open('b', 'w').write(open('d/a').read() * 2)", fresh=fresh, collect=["b"])
    assert [frames.file_part(content) for kind, _, content in told.frames if kind == frames.FILE] == [("b", b"abcabc")]


@EVERY
def test_session_on(start: Start, python: str) -> None:
    """An interpreter that is kept, on each version."""
    agent = start(python)
    assert agent.run(1, "x = 1", session=True).last["alive"] is True
    assert json.loads(agent.run(1, "x + 1", session=True).text(frames.RESULT))["result"] == "2"
    agent.write(frames.frame(frames.RESET, 1))
    assert agent.told().last == {"clean": True, "left": []}


@EVERY
def test_daemon_on(start: Start, python: str) -> None:
    """What left its session is killed, on each version."""
    code = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: print(os.getpid())\n    time.sleep(100)\ntime.sleep(0.1)"
    told = start(python).run(1, code)
    daemon = int(told.text(frames.STDOUT))
    assert told.last["clean"] is True
    # It may not be buried yet: that is whoever's child it was last.
    assert not Path(f"/proc/{daemon}").exists() or system.is_zombie(daemon)


def test_says_what_it_is(start: Start) -> None:
    """Version, process id, interpreter and abilities: as the user that it was started by it cannot promise much."""
    agent = start()
    abilities = {"separate_user": False, "kill_all": False, "verified_reset": False, "fork": True}
    assert agent.hello["abilities"] == abilities
    assert agent.hello["pid"] == agent.process.pid
    assert agent.hello["python"] == ".".join(map(str, sys.version_info[:3]))
    assert agent.hello["executable"] == sys.executable


@EVERY
def test_says_which_module_it_cannot_import(start: Start, python: str) -> None:
    """With its place, and why; then it ends."""
    agent = start(python, preload=["json", "no_such_module"], place="hubs.mine.")
    problem = "hubs.mine.preload: module 'no_such_module' cannot be imported: ModuleNotFoundError: No module named "
    assert agent.hello["problem"] == f"{problem}'no_such_module'"
    assert agent.hello["abilities"]["fork"] is False
    assert agent.process.wait() == 0


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "preload: module '' cannot be imported: ValueError: Empty module name"),
        ("ü" * 200, f"preload: module '{'ü' * 116}"),
        ("\udcff", "preload: module '\\udcff' cannot be imported: ModuleNotFoundError"),
    ],
)
def test_what_cannot_be_imported_may_be_anything(start: Start, name: str, problem: str) -> None:
    """What is said of it is bounded, and text."""
    assert start(preload=[name]).hello["problem"].startswith(problem)


@pytest.mark.skipif("os.geteuid() != 0", reason="only root can give payloads a user of their own")
def test_says_what_it_can_do_with_a_user(start: Start) -> None:
    """With a user for payloads it can promise all."""
    assert set(start(user=(USER, USER)).hello["abilities"].values()) == {True}


def test_lower_fences_are_refused(start: Start) -> None:
    """Who has lost a lease does nothing any more: neither begins, nor cancels, nor resets, nor puts files."""
    agent = start()
    assert agent.run(10, "1", session=True).last["alive"] is True
    for frame in (
        frames.frame(frames.RUN, 9, b"{}"),
        frames.frame(frames.CANCEL, 9),
        frames.frame(frames.RESET, 9),
        frames.file_frames("x", 9, b"x"),
    ):
        agent.write(frame)
        kind, fence, content = agent.read()
        assert (kind, fence, json.loads(content)["code"]) == (frames.REFUSED, 9, "fence")
    told = agent.run(10, "import os\nos.listdir()", session=True)
    assert json.loads(told.text(frames.RESULT))["result"] == "[]"


def test_higher_fence_ends_what_was_before(start: Start) -> None:
    """A session that its owner forgot is ended, with its processes and files, before the next one's work begins."""
    agent = start()
    agent.run(
        10, "import os\nopen('x', 'w').close()\nif os.fork() == 0:\n    import time\n    time.sleep(100)", session=True
    )
    told = agent.run(11, "import os\n[os.listdir(), 'os' in globals()]")
    assert json.loads(told.text(frames.RESULT))["result"] == "[[], true]"


def test_higher_fence_ends_what_runs(start: Start) -> None:
    """Even while it is at work."""
    agent = start()
    agent.ask(10, "import os\nos.write(1, b'at work')\nwhile True: pass")
    assert [agent.read()[0], agent.read()[0]] == [frames.STARTED, frames.STDOUT]
    told = agent.run(11, "1")
    assert (told.last["exit_status"], {fence for _, fence, _ in told.frames}) == (0, {11})


def test_cancel(start: Start) -> None:
    """What runs is killed; what it said before is told, and that it was cancelled."""
    agent = start()
    agent.ask(1, "print('x')\nwhile True: pass")
    while agent.read()[0] != frames.STDOUT:
        pass
    agent.write(frames.frame(frames.CANCEL, 1))
    told = agent.told()
    assert (told.last["cancelled"], told.last["timed_out"], told.last["clean"]) == (True, False, True)
    agent.write(frames.frame(frames.CANCEL, 1))  # too late: there is nothing to cancel
    assert agent.run(2, "1").last["exit_status"] == 0


def test_second_run_at_the_same_time_is_refused(start: Start) -> None:
    """One user at a time; the first is not disturbed."""
    agent = start()
    agent.ask(1, "import time\nprint('x')\ntime.sleep(0.5)\nprint('y')")
    while agent.read()[0] != frames.STDOUT:
        pass
    refused = agent.run(1, "2")
    assert (refused.kind, refused.last["reason"]) == (frames.REFUSED, "it is at work")
    assert agent.told().last["exit_status"] == 0


def test_code_and_input_of_any_length(start: Start) -> None:
    """What is longer than a frame goes in several."""
    agent = start()
    code = f"import sys\nx = {'a' * 3_000_000!r}\n[len(x), len(sys.stdin.read())]"
    told = agent.run(1, code, stdin=("QUFB" * 1_000_000))
    assert json.loads(told.text(frames.RESULT))["result"] == "[3000000, 3000000]"


def test_input_that_nobody_reads(start: Start) -> None:
    """Does not keep anybody waiting."""
    agent = start()
    assert agent.run(1, "1", stdin="QUFB" * 1_000_000).last["exit_status"] == 0
    assert agent.run(2, "import sys\nsys.stdin.close()\n1", stdin="QUFB" * 1_000_000).last["exit_status"] == 0


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("fresh", [False, True])
def test_next_child_that_is_no_more(start: Start, *, fresh: bool) -> None:
    """What was forked ahead of time and killed before it had anything to do is replaced: the work begins in another."""
    agent = start()
    (zygote,) = _children(agent.process.pid)
    for fence in (1, 2):
        (waiting,) = [pid for pid in _children(zygote) if not system.is_zombie(pid)]
        os.kill(waiting, signal.SIGKILL)
        while not system.is_zombie(waiting):
            pass
        told = agent.run(fence, "import os\nos.getpid()", fresh=fresh)
        assert (told.kind, told.last["exit_status"], told.last["clean"]) == (frames.DONE, 0, True)
        assert json.loads(told.text(frames.RESULT))["result"] != str(waiting)
        while not [pid for pid in _children(zygote) if not system.is_zombie(pid)]:
            pass


@pytest.mark.skipif("os.uname().machine != 'x86_64'", reason="the number of the call is that of this machine")
def test_child_that_a_payload_gives_to_its_parent(start: Start) -> None:
    """Made a sibling of the payload, and so a child of the zygote: it is killed too, and buried before the next one."""
    agent = start()
    (zygote,) = _children(agent.process.pid)
    sibling = """
import ctypes, os, signal, time
clone_parent = 0x8000
if ctypes.CDLL(None).syscall(56, clone_parent | signal.SIGCHLD, 0, 0, 0, 0) == 0:
    os.write(1, b"%d %d" % (os.getpid(), os.getppid()))
    time.sleep(100)
time.sleep(0.2)
"""
    told = agent.run(1, sibling)
    pid, parent = map(int, told.text(frames.STDOUT).split())
    assert (parent, told.last["clean"], told.last["left"]) == (zygote, True, [])
    assert system.is_zombie(pid)
    assert agent.run(2, "1").last["clean"] is True
    assert not Path(f"/proc/{pid}").exists()


def test_what_is_held_goes_out_in_one_piece() -> None:
    """Not before its time, unless there is much of it; then there is nothing more to wait for."""
    reading, writing = os.pipe()
    with selectors.DefaultSelector() as selector:
        outlet = pipes.Outlet(selector, writing, None)
        assert outlet.held_until == math.inf
        outlet.hold(b"a")
        until = outlet.held_until
        outlet.hold(b"b")
        assert (outlet.held_until, outlet.idle, select.select([reading], [], [], 0)[0]) == (until, False, [])
        outlet.flush()
        assert (os.read(reading, 9), outlet.held_until, outlet.idle) == (b"ab", math.inf, True)
        outlet.hold(b"c" * 65536)
        assert (len(os.read(reading, 1 << 17)), outlet.held_until) == (65536, math.inf)
        outlet.hold(b"d")
        outlet.write(b"e")
        assert os.read(reading, 9) == b"de"
        outlet.close()
        outlet.hold(b"f")
        assert (os.read(reading, 9), outlet.held_until) == (b"", math.inf)
    os.close(reading)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_end_by_a_signal(folder: Path, number: signal.Signals) -> None:
    """Asked to end it takes all down with it; killed, what it has forked dies with it all the same."""
    process = subprocess.Popen(runner.command(sys.executable), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    source = runner.agent_source()
    options = json.dumps({**ALL, "directory": str(folder)}).encode()
    process.stdin.write(len(source).to_bytes(4, "big") + source + frames.frame(frames.OPTIONS, 0, options))
    process.stdin.flush()
    os.read(process.stdout.fileno(), 4096)
    children = [int(word) for word in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    process.send_signal(number)
    assert process.wait() == (0 if number == signal.SIGTERM else -number)
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        pass
    assert folder.exists() is (number == signal.SIGKILL)
    process.stdin.close()
    process.stdout.close()


ALL: dict[str, Any] = {"user": None, "environment": {}, "places": [], "preload": [], "limits": {}, "place": ""}


@pytest.mark.parametrize("sent", [b"", b"\0", b"\0\0\0\5ab"])
def test_owner_that_leaves_at_once(sent: bytes) -> None:
    """One whose program never comes whole ends."""
    done = subprocess.run(runner.command(sys.executable), input=sent, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")


def test_owner_that_leaves_before_its_options() -> None:
    """One that is told nothing more ends."""
    source = runner.agent_source()
    program = len(source).to_bytes(4, "big") + source
    done = subprocess.run(runner.command(sys.executable), input=program, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"")


def test_program_is_one_text_without_its_package(tmp_path: Path) -> None:
    """It needs nothing of this project where it runs, and leaves no name of it to payloads."""
    text = runner.agent_source()
    assert b"gleitzeit_core" not in text
    assert len(text) < 100_000
    (tmp_path / "gleitzeit_python.py").write_text("MINE = 1\n")


def test_payload_finds_no_runner(start: Start) -> None:
    """The runner's modules are not in the payload's interpreter, whose own of that name are found instead."""
    agent = start("/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable)
    agent.write(frames.file_frames("gleitzeit_python.py", 1, b"MINE = 1"))
    told = agent.run(1, "import gleitzeit_python\ngleitzeit_python.MINE")
    assert json.loads(told.text(frames.RESULT))["result"] == "1"


@pytest.mark.skipif("os.geteuid() != 0", reason="only root may make control groups")
def test_memory_kills_are_named(start: Start, tmp_path: Path) -> None:
    """A payload that the kernel killed for want of memory is told apart from any other that was killed."""
    group = _control_group()
    if group is None:
        return  # nobody here may make one
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho $$ > {group}/cgroup.procs\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    try:
        agent = start(str(python))
        told = agent.run(1, "hog = []\nwhile True: hog.append(bytearray(1 << 22))")
        assert (told.last["oom_killed"], told.last["killed_by"], told.last["clean"]) == (True, "SIGKILL", True)
        told = agent.run(2, "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
        assert (told.last["oom_killed"], told.last["killed_by"]) == (False, "SIGKILL")
    finally:
        agent.end()
        group.rmdir()


@pytest.mark.skipif("os.geteuid() != 0", reason="only root can make namespaces")
def test_alone_in_a_namespace(start: Start, tmp_path: Path) -> None:
    """As the first process, as in a container, it kills all that the payload's user has, at once: even a fork bomb."""
    if shutil.which("unshare") is None:
        return  # nothing here makes namespaces
    python = tmp_path / "python"
    interpreter = shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable
    python.write_text(f'#!/bin/sh\nexec unshare --pid --fork --kill-child --mount-proc {interpreter} "$@"\n')
    python.chmod(0o755)
    agent = start(str(python), user=(USER, USER))
    assert agent.hello["pid"] == 1
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass\n"
    told = agent.run(1, bomb, timeout_s=1, limits={"processes": 80})
    assert (told.last["timed_out"], told.last["clean"], told.last["left"]) == (True, True, [])
    daemon = (
        "import os, time\nfor _ in range(3):\n    if os.fork() == 0:\n        os.setsid()\n        time.sleep(100)\n"
    )
    assert agent.run(2, daemon).last["clean"] is True
    seen = agent.run(3, "import os\n[int(p) for p in os.listdir('/proc') if p.isdigit() and int(p) != os.getpid()]")
    # The agent, what forks for it, and perhaps the next child, which has not begun.
    assert len(json.loads(json.loads(seen.text(frames.RESULT))["result"])) <= 3


def test_kill_all_is_for_namespaces_alone() -> None:
    """Where other people's processes run, an agent refuses to do what kills everybody's."""
    with pytest.raises(RuntimeError, match="only alone in a namespace"):
        cleaning._kill_user(USER)


def _control_group() -> Path | None:
    for root, limit in (("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")):
        group = Path(root) / f"gleitzeit-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / limit).exists():
            (group / limit).write_text(str(96 << 20))
            return group
        group.rmdir()
    return None
