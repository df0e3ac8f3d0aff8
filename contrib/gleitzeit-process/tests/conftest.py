"""What the tests of the hub type `process` share: runners, and the proof that nothing of them is left."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_process.hub import ProcessHub
from gleitzeit_process.options import ProcessOptions
from gleitzeit_python.options import PythonOptions
from gleitzeit_python.provider import PythonProvider

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

# Nobody else's, nor those of other runs of these tests: other people's processes run on this machine.
FIRST_USER = 200_000 + os.getpid() % 100_000 * 8
USERS = range(FIRST_USER, FIRST_USER + 8)


def _python() -> str:
    """An interpreter that any user can run; none if there is no such thing."""
    system = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    return system or sys.executable


def _processes() -> dict[int, int]:
    """The processes there are, and their parents."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            found[int(status.parent.name)] = int(status.read_text(errors="replace").rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def ours() -> set[int]:
    """The processes that this one has started, they, and so on, zombies included; and all of the payloads' users."""
    parents = _processes()
    found: set[int] = set()
    more = {os.getpid()}
    while more:
        more = {pid for pid, parent in parents.items() if parent in more and pid not in found}
        found |= more
    return found | {pid for pid in parents if _owner(Path(f"/proc/{pid}")) in USERS}


def _owner(path: Path) -> int:
    """Whose it is; -1 when it is gone: others work here, too."""
    try:
        return path.lstat().st_uid
    except (FileNotFoundError, ProcessLookupError):
        return -1


@pytest.fixture
def running() -> Callable[[], set[int]]:
    """Tells the processes of this test."""
    return ours


@pytest.fixture
def until() -> Callable[[Callable[[], object]], Awaitable[None]]:
    """Waits for what nobody tells us of: what another process does."""

    async def until(holds: Callable[[], object]) -> None:
        while not holds():
            await asyncio.sleep(0.01)

    return until


@pytest.fixture(autouse=True)
def leaves_nothing(folder: Path) -> Iterator[None]:
    """Whatever a test does: no process of it outlives it, not even as a zombie, and no file of a payload."""
    before = ours()
    yield
    assert ours() <= before
    assert list(folder.iterdir()) == []
    for place in (Path("/tmp"), Path("/dev/shm"), Path("/var/tmp")):  # noqa: S108 - where payloads may write
        assert [path for path in place.iterdir() if _owner(path) in USERS] == []


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the payloads' working directories are made; other users may pass through, as not below pytest's own."""
    with tempfile.TemporaryDirectory(prefix="gleitzeit-test-") as made:
        Path(made).chmod(0o711)
        yield Path(made)


@pytest.fixture(scope="session")
def others() -> list[str]:
    """The plugins with hubs of their own that are installed beside this one."""
    return sorted({"docker", "llamacpp", "ollama", "openai"} & entry_points(group="gleitzeit").names)


@pytest.fixture
def first_user() -> int:
    """For hubs that give each process a user of its own."""
    return FIRST_USER


@pytest.fixture(params=["same user", *(["own user"] if os.geteuid() == 0 else [])])
def kind(request: pytest.FixtureRequest) -> str:
    """Whether payloads run as who runs the tests, or, which only root can have, as a user of their own."""
    return str(request.param)


@pytest.fixture
def hub_options(folder: Path) -> dict[str, Any]:
    """Of every hub here."""
    return {"max_total": 1, "directory": str(folder), "python": sys.executable}


@pytest.fixture
def runners(hub_options: dict[str, Any]) -> Callable[..., Any]:
    """Opens a provider with a hub of its own, in an ``async with`` block."""

    @asynccontextmanager
    async def open_runners(provider: dict[str, Any] | None = None, **options: object) -> AsyncIterator[PythonProvider]:
        if options.get("first_user") is not None:
            options.setdefault("python", _python())
        hub = ProcessHub(ProcessOptions.model_validate({**hub_options, **options}))
        async with PythonProvider(PythonOptions.model_validate(provider or {}), hub=hub) as opened:
            yield opened

    return open_runners


@pytest.fixture
def of_kind(kind: str, runners: Callable[..., Any]) -> Callable[..., Any]:
    """The same, of one kind after the other."""
    user = {"first_user": FIRST_USER, "reuse": False} if kind == "own user" else {}

    def open_runners(
        provider: dict[str, Any] | None = None, **options: object
    ) -> AbstractAsyncContextManager[PythonProvider]:
        return runners(provider, **{**user, **options})

    return open_runners


@pytest.fixture
def execute() -> Callable[..., Awaitable[dict[str, Any]]]:
    """``python/execute``, with the code as its first parameter."""

    async def execute(provider: PythonProvider, code: str, **params: object) -> dict[str, Any]:
        answer: dict[str, Any] = await provider.execute("python/execute", {"code": code, **params})
        return answer

    return execute
