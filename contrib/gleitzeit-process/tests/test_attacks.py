"""Code that tries to stay, to break out, to fill up or to lie. After each the runner serves the next, or is replaced.

Each runs as the user who runs the tests and, where that is root, as a user of its own; what only the latter is
protected from is tested there alone. That nothing is left is looked at after each, in conftest.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import InstanceFailure
from gleitzeit_process import child
from gleitzeit_python import exchange

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Execute = Callable[..., Awaitable[dict[str, Any]]]
    Runners = Callable[..., Any]

pytestmark = [pytest.mark.attacks]

BOTH = pytest.mark.parametrize("interpreter", ["forked", "fresh"])
OWN_USER = pytest.mark.skipif("os.geteuid() != 0", reason="only root can give payloads a user of their own")

DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in range(3): os.close(number)
        time.sleep(1000)
    os._exit(0)
print("left one behind")
"""


async def goes_on(execute: Execute, provider: object) -> None:
    """The pool still serves."""
    answer = await execute(provider, "1 + 1")
    assert answer["result"] == 2, answer


# -- time --------------------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    "code",
    [
        "print('so far')\nwhile True: pass",
        "import time\nprint('so far')\ntime.sleep(1000)",
        "import signal as s, time\nprint('so far')\nfor n in set(s.Signals) - {9, 19}: s.signal(n, s.SIG_IGN)\ntime.sleep(1000)",
        "import os, time\nprint('so far')\nos.setpgrp() if os.getpid() != os.getpgrp() else 0\ntime.sleep(1000)",
        "import os, signal\nprint('so far')\nos.kill(os.getpid(), signal.SIGSTOP)",
    ],
    ids=["loop", "sleep", "deaf", "group", "stopped"],
)
async def test_time_runs_out(of_kind: Runners, execute: Execute, code: str, interpreter: str) -> None:
    """It is killed, and what it has said until then is there."""
    async with of_kind() as provider:
        answer = await execute(provider, code, timeout_s=0.5, interpreter=interpreter)
        assert (answer["timed_out"], answer["stdout"], answer["killed_by"]) == (True, "so far\n", "SIGKILL")
        assert answer["oom_killed"] is False
        await goes_on(execute, provider)


@BOTH
async def test_processor_time_runs_out(of_kind: Runners, execute: Execute, interpreter: str) -> None:
    """A limit on processor time kills by its own signal; who ignores that is killed all the same."""
    deaf = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\n"
    async with of_kind() as provider:
        for before, signal in (("print('so far')\n", "SIGXCPU"), (deaf + "print('so far')\n", "SIGKILL")):
            answer = await execute(provider, before + "while True: pass", limits={"cpu_s": 1}, interpreter=interpreter)
            assert (answer["killed_by"], answer["stdout"], answer["timed_out"]) == (signal, "so far\n", False)
            await goes_on(execute, provider)


# -- processes ---------------------------------------------------------------------------------------------------------------


@BOTH
async def test_daemon_that_leaves_its_session(of_kind: Runners, execute: Execute, interpreter: str) -> None:
    """It forks twice and leaves the session: it is found and killed when the program ends."""
    async with of_kind() as provider:
        answer = await execute(provider, DAEMON, interpreter=interpreter)
        assert (answer["stdout"], answer["exit_status"]) == ("left one behind\n", 0)
        await goes_on(execute, provider)


async def test_daemon_and_time_runs_out(of_kind: Runners, execute: Execute) -> None:
    """Neither it nor its father outlives the time-out."""
    async with of_kind() as provider:
        answer = await execute(provider, DAEMON + "time.sleep(1000)", timeout_s=0.5)
        assert answer["timed_out"] is True
        await goes_on(execute, provider)


async def test_many_children_that_are_parents(of_kind: Runners, execute: Execute) -> None:
    """A tree of processes that ignore all they can, some of them in sessions of their own, goes as one."""
    code = """
import os, signal, time
for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT): signal.signal(number, signal.SIG_IGN)
for depth in range(5):
    os.fork()
    if depth % 2: os.setsid() if os.getpid() != os.getsid(0) else None
time.sleep(1000)
"""
    async with of_kind() as provider:
        answer = await execute(provider, code, timeout_s=1)
        assert answer["timed_out"] is True
        await goes_on(execute, provider)


@OWN_USER
async def test_fork_bomb(runners: Runners, execute: Execute, first_user: int) -> None:
    """It runs into its limit; all that it started is killed, and there is room for the next."""
    code = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass\n"
    async with runners(first_user=first_user, reuse=False, limits={"processes": 60}) as provider:
        answer = await execute(provider, code, timeout_s=1)
        assert answer["timed_out"] is True
        await goes_on(execute, provider)


async def test_processes_that_are_waiting_for_each_other(of_kind: Runners, execute: Execute) -> None:
    """Zombies that nobody took leave of are gone as well."""
    code = "import os, time\nfor _ in range(20):\n    if os.fork() == 0: os._exit(0)\ntime.sleep(0.05)\n'done'"
    async with of_kind() as provider:
        assert (await execute(provider, code))["result"] == "done"
        await goes_on(execute, provider)


# -- output ------------------------------------------------------------------------------------------------------------------


@BOTH
async def test_endless_output(of_kind: Runners, execute: Execute, interpreter: str, *, full_size: bool) -> None:
    """Gigabytes are read and thrown away beyond the limit, and the program comes to its end."""
    pieces = 10_000 if full_size else 200
    code = f"import os\npiece = b'x' * (1 << 20)\nfor _ in range({pieces}):\n    left = piece\n"
    code += "    while left: left = left[os.write(1, left):]\nprint('end')\n7"
    async with of_kind() as provider:
        answer = await execute(provider, code, timeout_s=55, interpreter=interpreter)
        assert (answer["result"], answer["exit_status"], answer["timed_out"]) == (7, 0, False)
        assert answer["truncated"] == ["stdout"]
        assert answer["stdout"] == "x" * (1 << 20)
        await goes_on(execute, provider)


async def test_output_without_a_newline(of_kind: Runners, execute: Execute) -> None:
    """One line as long as the limit, on both streams."""
    code = "import sys\nsys.stdout.write('a' * (1 << 20))\nsys.stderr.write('b' * (1 << 20))"
    async with of_kind() as provider:
        answer = await execute(provider, code)
    assert (answer["stdout"], answer["stderr"], answer["truncated"]) == ("a" * (1 << 20), "b" * (1 << 20), [])


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (b"\x00\x01\xff\xfe", "\x00\x01\ufffd\ufffd"),
        ("täst".encode()[:2], "t\ufffd"),
        (b"ok\xf0\x9f\x98", "ok\ufffd"),
        (b"\xed\xa0\x80", "\ufffd\ufffd\ufffd"),
        ("\U0001f600".encode() * 30_000, "\U0001f600" * 30_000),
    ],
    ids=["binary", "cut", "cut long", "surrogate", "long characters"],
)
async def test_output_that_is_no_text(of_kind: Runners, execute: Execute, written: bytes, shown: str) -> None:
    """Bytes that are no UTF-8 are shown as such; characters that come in pieces are put together."""
    code = f"import os\nleft = {written!r}\nwhile left: left = left[os.write(1, left[:1001]):]"
    async with of_kind() as provider:
        assert (await execute(provider, code))["stdout"] == shown


async def test_it_closes_standard_output_and_goes_on(of_kind: Runners, execute: Execute) -> None:
    """The end of its output is not its end."""
    code = "import os, time\nprint('bye')\nos.close(1)\nos.close(2)\ntime.sleep(0.3)\nopen('late', 'w').write('still here')\n5"
    async with of_kind() as provider:
        answer = await execute(provider, code, collect=["late"])
        assert (answer["stdout"], answer["result"], list(answer["files"])) == ("bye\n", 5, ["late"])
        await goes_on(execute, provider)


async def test_it_closes_everything(of_kind: Runners, execute: Execute) -> None:
    """Then nobody learns its result, but what became of it."""
    async with of_kind() as provider:
        answer = await execute(provider, "import os\nos.closerange(0, 1000)\n5")
        assert (answer["result"], answer["exit_status"]) == (None, 0)
        await goes_on(execute, provider)


# -- memory and disk ---------------------------------------------------------------------------------------------------------


async def test_memory_hog(of_kind: Runners, execute: Execute) -> None:
    """It gets no more than it may have, and learns of it."""
    code = "hog = []\nwhile True: hog.append(bytearray(1 << 24))"
    async with of_kind() as provider:
        answer = await execute(provider, code, limits={"memory_bytes": 1 << 28})
        assert answer["exit_status"] == 1
        assert answer["stderr"].endswith("MemoryError\n")
        await goes_on(execute, provider)


async def test_disk_hog(of_kind: Runners, execute: Execute) -> None:
    """A file gets no larger than it may, and is gone afterwards."""
    code = "file = open('hog', 'wb', 0)\nwhile True: file.write(b'x' * (1 << 16))"
    async with of_kind() as provider:
        answer = await execute(provider, code, limits={"file_bytes": 1 << 20})
        assert (answer["exit_status"], answer["killed_by"]) in ((1, ""), (-25, "SIGXFSZ"))
        await goes_on(execute, provider)


@pytest.mark.parametrize(
    "code",
    [
        "import os\nfor n in range(300): os.makedirs(f'd{n}/e/f'); open(f'd{n}/e/f/g', 'w').close()",
        "import os\nfor n in range(200): os.mkdir('deep'); os.chdir('deep')",
        "import os\nos.makedirs('a/b'); open('a/b/c', 'w').close(); os.chmod('a/b', 0); os.chmod('a', 0); os.chmod('.', 0)",
        "import os\nos.symlink('/', 'root'); os.symlink('.', 'self'); os.symlink('nowhere', 'dead')",
        "import os\nos.mkfifo('pipe'); open('-rf', 'w').close(); open('a\\nb', 'w').close(); open(b'\\xff', 'w').close()",
        "import os\nfor n in range(1100): os.mkdir('deep'); os.chdir('deep'); open('x', 'w').close()",
        "import os\nos.rmdir(os.getcwd()) if os.access('..', os.W_OK) else None",
    ],
    ids=["many", "deep", "locked", "links", "odd names", "very deep", "none"],
)
async def test_what_it_writes_is_removed(of_kind: Runners, execute: Execute, code: str) -> None:
    """Folders of all kinds go, and what they link to stays."""
    async with of_kind() as provider:
        answer = await execute(provider, code, collect=["*/nothing"])
        assert (answer["stderr"], answer["exit_status"]) == ("", 0)
        await goes_on(execute, provider)
    assert os.stat("/etc/passwd")  # noqa: PTH116 - as short as it gets


@OWN_USER
async def test_what_it_leaves_elsewhere_is_removed(runners: Runners, execute: Execute, first_user: int) -> None:
    """Files in the places where anybody may write, and shared memory and message queues, go with a user of its own."""
    code = """
import ctypes, os, tempfile
open("/tmp/left by an attack", "w").write("x")
os.makedirs("/dev/shm/left/by/an/attack")
libc = ctypes.CDLL(None, use_errno=True)
result = [libc.shmget(0, 4096, 0o1666) >= 0, libc.semget(0, 1, 0o1666) >= 0, libc.msgget(0, 0o1666) >= 0]
result.append(libc.mq_open(b"/left", os.O_CREAT | os.O_RDWR, 0o666, None) < 0)
"""
    look = """
import os
rows = [open("/proc/sysvipc/" + kind).read().splitlines()[1:] for kind in ("shm", "sem", "msg")]
result = [os.path.exists("/tmp/left by an attack"), os.path.exists("/dev/shm/left")]
result.append(any(str(os.getuid()) in row.split() for part in rows for row in part))
"""
    async with runners(first_user=first_user, reuse=False) as provider:
        first, second = await execute(provider, code), await execute(provider, look)
    assert (first["result"], first["stderr"]) == ([True] * 4, "")
    assert second["result"] == [False] * 3
    assert first["instance"] == second["instance"]  # it was clean, and so it was used again


# -- the runner itself -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["the agent", "the fork server"])
@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGKILL", "SIGSTOP"])
async def test_signals_to_the_runner(
    of_kind: Runners, execute: Execute, kind: str, target: str, number: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user of its own cannot send any. Without one, whatever becomes of the runner, its caller and the pool recover."""
    monkeypatch.setattr(exchange, "_GRACE_S", 1.0)
    monkeypatch.setattr(child, "_GRACE_S", 1.0)
    up = (
        "os.getppid()"
        if target == "the fork server"
        else "int(open(f'/proc/{os.getppid()}/stat').read().rpartition(')')[2].split()[1])"
    )
    code = f"import os, signal, time\ntry: os.kill({up}, signal.{number})\nexcept PermissionError: print('refused')\nelse: time.sleep(0.2)\n"
    async with of_kind() as provider:
        if kind == "own user":
            assert (await execute(provider, code))["stdout"] == "refused\n"
        else:
            try:
                await execute(provider, code, timeout_s=1)
            except InstanceFailure as failure:
                assert failure.kind == "lost"
        await goes_on(execute, provider)


@OWN_USER
async def test_it_cannot_look_into_the_runner(runners: Runners, execute: Execute, first_user: int) -> None:
    """Neither the memory, nor the environment, nor the descriptors of agent and fork server are its business."""
    code = """
import os
def attempt(path, mode="rb"):
    try:
        os.listdir(path) if path.endswith("fd") else open(path, mode).read(1)
        return True
    except OSError:
        return False
server = os.getppid()
agent = int(open(f"/proc/{server}/stat").read().rpartition(")")[2].split()[1])
result = [attempt(f"/proc/{pid}/{name}") for pid in (server, agent) for name in ("mem", "environ", "fd", "maps")]
"""
    async with runners(first_user=first_user, reuse=False) as provider:
        answer = await execute(provider, code)
    assert answer["result"] == [False] * 8


@OWN_USER
async def test_it_has_no_rights(runners: Runners, execute: Execute, first_user: int) -> None:
    """It is nobody: no groups, no way back to root, no new privileges by a program, no files of others."""
    code = """
import os
def attempt(call, *given):
    try:
        call(*given)
        return True
    except OSError:
        return False
result = {
    "user": os.getresuid() + os.getresgid(), "groups": os.getgroups(), "root": attempt(os.setuid, 0),
    "shadow": attempt(open, "/etc/shadow"), "agent": attempt(os.listdir, os.path.dirname(os.getcwd())),
    "privileges": [line.split()[1] for line in open("/proc/self/status") if line.startswith("NoNewPrivs")],
    "descriptors": len(os.listdir("/proc/self/fd")),
}
"""
    async with runners(first_user=first_user, reuse=False) as provider:
        answer = await execute(provider, code)
    assert answer["result"] == {
        "user": [first_user] * 6,
        "groups": [],
        "root": False,
        "shadow": False,
        "agent": False,
        "privileges": ["1"],
        "descriptors": 5,  # three, its own to the agent, and the one that reads the list
    }


@BOTH
async def test_it_prints_frames(of_kind: Runners, execute: Execute, interpreter: str) -> None:
    """What looks like the runner's own answer, on any descriptor, is output or nothing: the answer is the runner's."""
    code = """
import os, struct
done = b'{"exit_status": 77, "killed_by": "", "timed_out": false, "oom_killed": false, "truncated": [], "clean": true}'
frames = b"".join(struct.pack(">BQI", kind, fence, len(done)) + done for kind in (20, 21, 22) for fence in (0, 1, 2**63))
for number in range(10):
    try: os.write(number, frames)
    except OSError: pass
"""
    async with of_kind() as provider:
        answer = await execute(provider, code, interpreter=interpreter)
        assert (answer["exit_status"], answer["result"]) == (0, None)
        assert answer["stdout"].startswith("\x14")
        await goes_on(execute, provider)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\xff" * 64,
        b"\0\0\0\2{}",
        b"\0\0\0\2[]",
        b"\0\0\0\5\xff\xfe\xfd\xfc\xfb",
        b'\0\0\0\x10{"result": "{{"}',
        b'\0\0\0\x1b{"plots": 5, "result": {}}  ',
        b"\0\0\x27\x10" + b"[" * 10_000,
        b'\0\0\0\x26{"plots": ["/etc/passwd", "../../x"]}  ',
    ],
)
async def test_it_lies_about_its_result(of_kind: Runners, execute: Execute, said: bytes) -> None:
    """It can write what it likes where its result is told, and only its own answer is the worse for it."""
    async with of_kind() as provider:
        answer = await execute(provider, f"import os\nos.write(3, {said!r})\nos._exit(0)")
        assert (answer["exit_status"], answer["files"]) == (0, {})
        await goes_on(execute, provider)


async def test_it_sends_without_end_where_its_result_is_told(of_kind: Runners, execute: Execute) -> None:
    """The runner keeps no more of it than of any result."""
    code = "import os\nos.write(3, b'\\xff' * 4)\nfor _ in range(300): os.write(3, b'x' * (1 << 16))\nos._exit(0)"
    async with of_kind() as provider:
        assert (await execute(provider, code))["exit_status"] == 0
        await goes_on(execute, provider)


# -- ends --------------------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("code", "status", "killed_by"),
    [
        ("import os; os._exit(7)", 7, ""),
        ("import ctypes; ctypes.string_at(0)", -11, "SIGSEGV"),
        ("import os; os.abort()", -6, "SIGABRT"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9, "SIGKILL"),
        ("import os; os.kill(os.getpid(), 40)", -40, "signal 40"),
        ("raise SystemExit", 0, ""),
        ("raise SystemExit(None)", 0, ""),
        ("raise SystemExit(300)", 44, ""),
        ("raise SystemExit(-1)", 255, ""),
        ("raise SystemExit(2**100)", 255, ""),
        ("raise SystemExit(True)", 1, ""),
        ("raise SystemExit('a text')", 1, ""),
        ("raise SystemExit(('a', 'tuple'))", 1, ""),
        ("raise KeyboardInterrupt", 130, ""),
        ("raise GeneratorExit", 1, ""),
        ("raise BaseException", 1, ""),
        ("class Odd(SystemExit):\n    code = property(lambda self: 1 / 0)\nraise Odd", 1, ""),
        ("class Odd(Exception):\n    def __str__(self): raise SystemExit(5)\nraise Odd", 1, ""),
        ("import sys\nsys.excepthook = lambda *_: sys.exit(9)\n1/0", 1, ""),
        ("import sys\nsys.stdout = sys.stderr = None\n1/0", 1, ""),
        ("raise Exception('x' * 50_000_000)", 1, ""),
        ("def f(n): return f(n + 1)\nf(0)", 1, ""),
        (
            "error = None\nfor n in range(3000):\n    new = Exception(n); new.__cause__ = error; error = new\nraise error",
            1,
            "",
        ),
        ("import atexit, os\natexit.register(os._exit, 8)", 8, ""),
        ("import threading, sys\nthreading.Thread(target=sys.exit, args=(4,)).start()", 0, ""),
        ("import os, sys\nif os.fork() == 0: sys.exit(4)\nos.wait()", 0, ""),
        ("(" * 100_000, 1, ""),
    ],
)
async def test_every_kind_of_end(
    of_kind: Runners, execute: Execute, code: str, status: int, killed_by: str, interpreter: str
) -> None:
    """The exit status is what Python's would be, or the signal is named."""
    async with of_kind() as provider:
        answer = await execute(provider, code, interpreter=interpreter, timeout_s=30)
        assert (answer["exit_status"], answer["killed_by"]) == (status, killed_by), answer["stderr"][-2000:]
        assert answer["timed_out"] is False
        await goes_on(execute, provider)


# -- many --------------------------------------------------------------------------------------------------------------------


async def test_two_hundred_at_once(of_kind: Runners, execute: Execute) -> None:
    """On a pool of four each gets its own answer, and never more than four processes serve them."""
    async with of_kind(max_total=4) as provider, asyncio.timeout(50):
        answers = await asyncio.gather(
            *(execute(provider, f"open('mine', 'x').write('{n}')\nprint({n})\n{n} * {n}") for n in range(200))
        )
        assert [answer["result"] for answer in answers] == [n * n for n in range(200)]
        assert [answer["stdout"] for answer in answers] == [f"{n}\n" for n in range(200)]
        assert len({answer["instance"] for answer in answers}) == 4


async def test_all_kinds_at_once(of_kind: Runners, execute: Execute) -> None:
    """Attacks beside each other and beside honest work: each gets its own end."""
    work = {
        "6*7": lambda answer: answer["result"] == 42,
        "while True: pass": lambda answer: answer["timed_out"],
        DAEMON: lambda answer: answer["stdout"] == "left one behind\n",
        "import os; os._exit(9)": lambda answer: answer["exit_status"] == 9,
        "import ctypes; ctypes.string_at(0)": lambda answer: answer["killed_by"] == "SIGSEGV",
        "print('x' * 3_000_000)": lambda answer: answer["truncated"] == ["stdout"],
    }
    async with of_kind(max_total=3) as provider, asyncio.timeout(50):
        codes = list(work) * 5
        answers = await asyncio.gather(*(execute(provider, code, timeout_s=1) for code in codes))
        wrong = [(code, answer) for code, answer in zip(codes, answers, strict=True) if not work[code](answer)]
        assert wrong == []
        await goes_on(execute, provider)
