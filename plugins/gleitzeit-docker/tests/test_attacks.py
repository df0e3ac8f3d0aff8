"""Code that tries to break out, hang on or fill up, in containers of a real engine.

After each: the answer says what happened, the next run works, and nothing of the first is left anywhere.
"""

from __future__ import annotations

import asyncio
import base64
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import InstanceFailure, RequestError
from gleitzeit_docker.hub import DockerHub
from gleitzeit_docker.options import DockerOptions
from gleitzeit_python.provider import PythonProvider

from .waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from docker.api.client import APIClient

pytestmark = [pytest.mark.docker, pytest.mark.attacks, pytest.mark.timeout(120)]

EXECUTE = "python/execute"


class Sandbox:
    """A pool of containers, and the provider that runs code in them."""

    def __init__(self, provider: PythonProvider, hub: DockerHub) -> None:
        self.provider, self.hub = provider, hub

    async def run(self, code: str, **params: Any) -> dict[str, Any]:  # noqa: ANN401 - as a request has it
        """Run code, for one tenant."""
        tenant = params.pop("tenant", "eve")
        answer: dict[str, Any] = await self.provider.execute(EXECUTE, {"code": code, **params}, tenant=tenant)
        return answer

    async def is_well(self, size: int = 1) -> None:
        """The pool has its size, and a run in it leaves and finds nothing."""
        answer = await self.run(LEFT_OVER)
        assert answer["result"] == [], answer
        await until(lambda: len(self.hub._containers) == len(self.hub.instances) == size)

    def container(self) -> str:
        """The id of the only one."""
        (container,) = self.hub._containers.values()
        return container.id


# Processes that are neither the runner's nor its own, and files of payloads.
LEFT_OVER = """
import os
own = {1, os.getpid(), os.getppid()}
found = []
for pid in filter(str.isdecimal, os.listdir("/proc")):
    try:
        state = open("/proc/" + pid + "/stat").read().rpartition(")")[2].split()[0]
        # One that has ended and waits for its parent to hear of it holds nothing any more.
        if os.stat("/proc/" + pid).st_uid == os.getuid() and int(pid) not in own and state != "Z":
            found.append(pid)
    except OSError:
        pass
for place in ("/tmp", "/dev/shm", "/dev/mqueue"):
    for name in os.listdir(place):
        full = os.path.join(place, name)
        if os.stat(full).st_uid == os.getuid() and not os.getcwd().startswith(full):
            found.append(full)
result = found
"""


@asynccontextmanager
async def sandbox(**given: Any) -> AsyncIterator[Sandbox]:  # noqa: ANN401 - as in a configuration
    """One container, and never more."""
    options = {"image": "gleitzeit-test-python:latest", "min_total": 1, "max_total": 1, **given}
    hub = DockerHub(DockerOptions.model_validate(options))
    async with PythonProvider(hub=hub) as provider:
        yield Sandbox(provider, hub)


@pytest.fixture
async def box(engine: APIClient) -> AsyncIterator[Sandbox]:  # noqa: ARG001 - it must be there
    """A sandboxed container."""
    async with sandbox() as made:
        yield made


async def test_code_is_run_and_the_container_used_again(box: Sandbox) -> None:
    """The main road: output, result, and the same container for the same tenant."""
    first = box.container()
    answer = await box.run("print('hello'); 6 * 7")
    assert (answer["stdout"], answer["result"]) == ("hello\n", 42)
    await box.is_well()
    assert box.container() == first


@pytest.mark.parametrize("interpreter", ["forked", "fresh"])
@pytest.mark.parametrize(
    ("code", "limit_s"),
    [
        ("while True: pass", 0.5),
        ("import time; print('so far', flush=True); time.sleep(600)", 0.5),
        (
            "import signal\nfor n in range(1, 65):\n  try: signal.signal(n, signal.SIG_IGN)\n  except OSError: pass\nwhile True: pass",
            0.5,
        ),
    ],
    ids=["loop", "sleep", "deaf"],
)
async def test_what_does_not_end_is_ended(box: Sandbox, code: str, limit_s: float, interpreter: str) -> None:
    """At its time-out, with what it had said; and the container is clean."""
    first = box.container()
    answer = await box.run(code, timeout_s=limit_s, interpreter=interpreter)
    assert answer["timed_out"]
    assert answer["stdout"] == ("so far\n" if "so far" in code else "")
    await box.is_well()
    assert box.container() == first


DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for n in range(3): os.close(n)
        time.sleep(600)
    os._exit(0)
print("left")
"""


async def test_a_daemon_that_leaves_the_session_is_killed(box: Sandbox) -> None:
    """Forked twice, in a session of its own, without any stream of ours: gone after the run."""
    first = box.container()
    answer = await box.run(DAEMON)
    assert answer["stdout"] == "left\n"
    await box.is_well()
    assert box.container() == first


BOMB = """
import os, time
while True:
    try:
        os.fork()
    except OSError:
        time.sleep(0.001)
"""


async def test_a_fork_bomb_meets_the_limit_of_processes(box: Sandbox, engine: APIClient) -> None:
    """It fills what the container may have, no more; it is ended, all of it, and the host did not notice."""
    running = asyncio.create_task(box.run(BOMB, timeout_s=1.5))
    seen = 0
    while not running.done():
        stats = await asyncio.to_thread(engine.stats, box.container(), stream=False, one_shot=True)
        seen = max(seen, stats.get("pids_stats", {}).get("current", 0))
    assert (await running)["timed_out"]
    assert seen <= 128
    await box.is_well()


HOG = """
held = []
while True:
    held.append(bytearray(16 * 1024 * 1024))
"""


@pytest.mark.parametrize("interpreter", ["forked", "fresh"])
async def test_a_memory_hog_is_killed_and_named(box: Sandbox, interpreter: str) -> None:
    """By the kernel, at the container's limit, without swap; the answer says so."""
    answer = await box.run("print('begin', flush=True)\n" + HOG, interpreter=interpreter, timeout_s=60)
    assert answer["oom_killed"], answer
    assert answer["stdout"] == "begin\n"
    await box.is_well()


async def test_a_child_that_hogs_memory_is_killed_alone(box: Sandbox) -> None:
    """The kernel takes the payload's largest process, never the runner: what started it sees that, and goes on."""
    first = box.container()
    code = f"import os\npid = os.fork()\nif pid == 0:\n  exec({HOG!r})\nprint(os.waitpid(pid, 0)[1])"
    answer = await box.run(code, timeout_s=60)
    assert answer["stdout"] == "9\n"
    # The payload itself has ended well.
    assert (answer["oom_killed"], answer["killed_by"], answer["exit_status"]) == (True, "", 0)
    assert (await box.run("1"))["oom_killed"] is False
    await box.is_well()
    assert box.container() == first


async def test_endless_output_is_cut_and_costs_no_disk(box: Sandbox, engine: APIClient, *, full_size: bool) -> None:
    """10 GB: what is kept has a limit, the answer says so, nobody's memory or disk fills up."""
    size = 10_000 if full_size else 200
    code = f"import os\nblock = b'x' * 1_000_000\nfor _ in range({size}):\n  left = block\n  while left: left = left[os.write(1, left):]"
    answer = await box.run(code, timeout_s=100)
    assert answer["truncated"], {key: value for key, value in answer.items() if key != "stdout"}
    assert len(answer["stdout"]) < 50_000_000
    assert not engine.inspect_container(box.container())["LogPath"]
    await box.is_well()


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.stdout.write('x' * 5_000_000)",
        "import os; os.write(1, bytes(range(256)) * 1000)",
        r"import os; os.write(1, b'\xff\xfe\x80 broken \xc3')",
        "import os, struct\nfor n in range(256): os.write(1, struct.pack('>BxxxI', n, 5) + b'hello' + struct.pack('>I', 2**31))",
        "import os; os.close(1); os.close(2); import time; time.sleep(0.2)",
    ],
    ids=["no newline", "binary", "broken UTF-8", "frames", "closed streams"],
)
async def test_whatever_it_writes_is_only_output(box: Sandbox, code: str) -> None:
    """Neither the engine's frames nor the runner's can be forged from inside."""
    first = box.container()
    answer = await box.run(code)
    assert not answer["timed_out"]
    await box.is_well()
    assert box.container() == first


KILL_ALL = "import os, signal; os.kill(-1, signal.SIGKILL)"
FORBIDDEN = [
    "import os, signal; os.kill(1, signal.SIGKILL)",
    "import os, signal; os.kill(os.getppid(), signal.SIGSTOP)",
    KILL_ALL,
    "import os; os.setuid(0)",
    "import os; os.chroot('/')",
    "open('/proc/1/mem', 'rb')",
    "open('/proc/1/environ', 'rb').read()",
    "open('/etc/shadow').read()",
    "open('/etc/passwd', 'a')",
    "open('/usr/bin/evil', 'w')",
    "open('/dev/sda', 'rb')",
    "open('/dev/kmsg', 'rb')",
    "open('/proc/sysrq-trigger', 'w')",
    "open('/proc/sys/kernel/core_pattern', 'w')",
    "import os; os.mknod('/tmp/disk', 0o60600, os.makedev(8, 0))",
    "import os; os.unlink('/etc/hostname')",
    "import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
    "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\nif libc.mount(b'none', b'/tmp', b'tmpfs', 0, None): raise OSError(ctypes.get_errno(), 'mount')",
    "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\nif libc.unshare(0x10000000): raise OSError(ctypes.get_errno(), 'unshare')",
    "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\nif libc.ptrace(16, 1, 0, 0): raise OSError(ctypes.get_errno(), 'ptrace')",
    "import socket; socket.create_connection(('1.1.1.1', 53), 2)",
    "import socket; socket.getaddrinfo('localhost.localdomain.invalid', 80)",
    "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/var/run/docker.sock')",
    "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
]


async def test_what_is_forbidden_fails(box: Sandbox) -> None:
    """Each with an error of the operating system, in the payload; nothing else happens, and the container goes on."""
    first, done = box.container(), []
    for code in FORBIDDEN:
        answer = await box.run(
            f"try:\n{_indented(code)}\nexcept OSError:\n    print('refused')\nelse:\n    print('done')"
        )
        done += [] if answer["stdout"] == "refused\n" else [(code, answer)]
        await box.is_well()
    # It may kill all that is its own, which is itself.
    assert [code for code, _ in done] == [KILL_ALL], done
    assert box.container() == first


async def test_the_host_and_its_secrets_are_not_to_be_seen(box: Sandbox, tmp_path: Path) -> None:
    """Neither its files, nor its processes, nor its environment, nor a network."""
    (tmp_path / "secret").write_text("a secret of the host")
    answer = await box.run(
        "import os, socket\n"
        f"result = [os.path.exists({str(tmp_path)!r}), len([p for p in os.listdir('/proc') if p.isdecimal()]) < 20,"
        " sorted(name for _, name in socket.if_nameindex()), os.getuid(), socket.gethostname()]"
    )
    there, few, interfaces, user, host = answer["result"]
    assert not there
    assert few
    assert "eth0" not in interfaces
    assert user == 65534
    assert host == "gleitzeit"
    environment = (await box.run("import os; dict(os.environ)"))["result"]
    assert not [
        name
        for name in environment
        if name in os.environ and name not in ("PATH", "HOME", "LANG", "TMPDIR", "LC_CTYPE")
    ]


async def test_a_full_disk_is_its_own(box: Sandbox) -> None:
    """What it can write is as large as the profile says, and is empty again afterwards."""
    code = (
        "import os\nwritten = 0\ntry:\n  with open('/tmp/big', 'wb', buffering=0) as file:\n    while True:\n"
        "      written += file.write(b'x' * 1_000_000)\nexcept OSError as error:\n  result = [error.errno, written]"
    )
    number, written = (await box.run(code, timeout_s=30))["result"]
    assert number == 28
    assert written <= 64 * 1024**2
    await box.is_well()
    assert (await box.run("open('/tmp/again', 'wb').write(b'x' * 10_000_000)"))["result"] == 10_000_000


MESS = """
import ctypes, os
for place in ("/tmp", "/dev/shm"):
    os.makedirs(place + "/a/b/c")
    open(place + "/a/b/c/file", "w").write("secret")
    os.chmod(place + "/a", 0)
    os.symlink("/etc", place + "/link")
libc = ctypes.CDLL(None, use_errno=True)
libc.mq_open(b"/queue", os.O_CREAT | os.O_RDWR, 0o600, None)
result = [libc.msgget(77, 0o1600), libc.shmget(77, 4096, 0o1600), libc.semget(77, 1, 0o1600)]
"""


async def test_files_and_queues_that_are_left_are_wiped(box: Sandbox) -> None:
    """In all places that can be written, and in the kernel's; also where permissions stand in the way."""
    await box.run(MESS)
    await box.is_well()
    answer = await box.run(
        "import ctypes\nlibc = ctypes.CDLL(None)\n[libc.msgget(77, 0), libc.shmget(77, 0, 0), libc.semget(77, 0, 0)]"
    )
    assert answer["result"] == [-1, -1, -1]


ENDINGS: list[tuple[str, int | None, str]] = [
    ("import os; os._exit(7)", 7, ""),
    ("raise SystemExit(3)", 3, ""),
    ("raise SystemExit('a message')", 1, ""),
    ("raise SystemExit(None)", 0, ""),
    ("raise SystemExit(10**30)", None, ""),
    ("import ctypes; ctypes.string_at(0)", None, "SIGSEGV"),
    ("raise ValueError('x' * 50_000_000)", 1, ""),
    ("def f(): f()\nf()", 1, ""),
    ("class E(Exception):\n  def __str__(self): raise SystemExit(5)\nraise E", None, ""),
]


@pytest.mark.parametrize("interpreter", ["forked", "fresh"])
async def test_however_it_ends_the_answer_says_so(box: Sandbox, interpreter: str) -> None:
    """With its status, or the signal that killed it; the container goes on."""
    first = box.container()
    for code, status, signal_name in ENDINGS:
        answer = await box.run(code, interpreter=interpreter, timeout_s=60)
        assert status is None or answer["exit_status"] == status, (code, answer)
        assert answer["killed_by"] == signal_name, (code, answer)
        await box.is_well()
    assert box.container() == first


@pytest.mark.usefixtures("engine")
async def test_another_tenant_never_gets_the_same_container() -> None:
    """With room for one only, that of the first goes before the second gets its own."""
    async with sandbox(min_total=0, max_total=1) as box:
        first = (await box.run("1", tenant="alice"))["instance"]
        assert (await box.run("1", tenant="alice"))["instance"] == first
        second = (await box.run("1", tenant="bob"))["instance"]
        assert second != first
        assert (await box.run("1", tenant="alice"))["instance"] not in (first, second)


async def test_a_container_that_is_killed_during_a_run_fails_it_and_is_replaced(
    box: Sandbox, engine: APIClient
) -> None:
    """Code is not run twice: the caller hears of it. The next run gets another container."""
    first = box.container()
    task = asyncio.create_task(box.run("import time; time.sleep(60)"))
    await _busy(box)
    await asyncio.to_thread(engine.kill, first)
    with pytest.raises(InstanceFailure):
        await task
    await box.is_well()
    assert box.container() != first


async def test_a_container_that_is_paused_during_a_run_fails_it_and_is_replaced(
    box: Sandbox, engine: APIClient
) -> None:
    """Nobody waits for one that does not move."""
    first = box.container()
    task = asyncio.create_task(box.run("import time; time.sleep(60)"))
    await _busy(box)
    await asyncio.to_thread(engine.pause, first)
    async with asyncio.timeout(20):
        with pytest.raises(RequestError):
            await task
    await box.is_well()


async def test_a_caller_that_leaves_in_any_state_leaves_nothing(box: Sandbox) -> None:
    """While it waits for a container, while code is sent, runs, or is being ended: the pool has its size again."""
    for delay_s in (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3):
        blocker = asyncio.create_task(box.run("import time; time.sleep(0.05)"))
        task = asyncio.create_task(box.run(DAEMON + "\ntime.sleep(60)"))
        await asyncio.sleep(delay_s)
        task.cancel()
        await asyncio.gather(task, blocker, return_exceptions=True)
        assert task.cancelled()
    await box.is_well()
    assert box.provider.dispatcher.active == 0


@pytest.mark.usefixtures("engine")
async def test_many_runs_at_once_on_a_pool_of_four(*, full_size: bool) -> None:
    """All are answered, each by its own; never more than four containers, none used by two at once."""
    count = 200 if full_size else 60
    async with sandbox(min_total=0, max_total=4) as box:
        code = "import os, time\nopen('/tmp/mine', 'x').close()\ntime.sleep(0.01)\nprint({n})"
        answers = await asyncio.gather(*(box.run(code.format(n=n), timeout_s=60) for n in range(count)))
        assert [answer["stdout"] for answer in answers] == [f"{n}\n" for n in range(count)]
        assert len({answer["instance"] for answer in answers}) <= 4
        assert len(box.hub._containers) <= 4


async def test_files_go_in_and_come_out(box: Sandbox) -> None:
    """Through the channel: nothing of the host is mounted."""
    answer = await box.run(
        "data = open('in.bin', 'rb').read()\nopen('out.bin', 'wb').write(data[::-1])",
        files={"in.bin": {"base64": base64.b64encode(bytes(range(256))).decode()}},
        collect=["*.bin"],
    )
    assert base64.b64decode(answer["files"]["out.bin"]["base64"]) == bytes(range(256))[::-1]


async def test_the_environment_reaches_payloads_but_no_inspection(engine: APIClient) -> None:
    """It goes through the channel, so that no one who may list containers sees it."""
    async with sandbox(environment={"TOKEN": "hidden"}) as box:
        assert (await box.run("import os; os.environ['TOKEN']"))["result"] == "hidden"
        assert "hidden" not in str(engine.inspect_container(box.container()))


async def _busy(box: Sandbox) -> None:
    """Until a run has begun in the container."""
    await until(lambda: box.provider.dispatcher.shell.admission.pool.in_flight)
    await asyncio.sleep(0.3)


def _indented(code: str) -> str:
    return "\n".join(f"    {line}" for line in code.splitlines())
