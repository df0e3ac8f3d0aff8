"""Who carries requests out for a command: a running gateway, or a manager in this process. Both look the same."""

from __future__ import annotations

import asyncio
import signal
import threading
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from pydantic_core import to_jsonable_python

from gleitzeit_core.errors import ClosedError

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator, Iterator, Mapping
    from concurrent.futures import Future
    from types import FrameType

    from gleitzeit_core.manager import ResourceManager

_T = TypeVar("_T")
_TERMINATED = 128 + signal.SIGTERM


class Backend(Protocol):
    """Carries requests out. `GatewayClient` is one, `LocalBackend` the other."""

    def models(self) -> dict[str, Any]:
        """The models, as Ollama lists them."""

    def call(self, method: str, params: Mapping[str, Any], timeout_s: float | None) -> Any:  # noqa: ANN401 - the method's own
        """Carry `method` out and return its answer, as plain data."""

    def stream(self, method: str, params: Mapping[str, Any], timeout_s: float | None) -> Generator[Any, None, None]:
        """The same in parts, as they come. Leaving early cancels the work."""

    def chat(self, body: Mapping[str, Any], timeout_s: float | None) -> Generator[dict[str, Any], None, None]:
        """The parts of a chat's answer, as Ollama streams them."""


class LocalBackend:
    """A manager in this process, run by a thread of its own, so that it lives on while a person thinks.

    Ctrl-C then reaches the thread that waits, and cancels the request only. Use it in a ``with`` block.

    Args:
        manager: Not started; started and stopped here.
    """

    def __init__(self, manager: ResourceManager) -> None:
        self._manager = manager
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started = threading.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(target=self._run, name="gleitzeit-local", daemon=True)

    def __enter__(self) -> Self:
        """Start the manager.

        Raises:
            GleitzeitError: A hub that the configuration names cannot start.
        """
        self._thread.start()
        self._started.wait()
        try:
            self._wait(self._manager.__aenter__())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stop the manager, and all it started."""
        try:
            self._wait(self._manager.aclose())
        finally:
            self._end()

    def models(self) -> dict[str, Any]:
        """See `Backend`."""
        found: dict[str, Any] = self.call("llm/models", {}, None)
        return found

    def call(self, method: str, params: Mapping[str, Any], timeout_s: float | None) -> Any:  # noqa: ANN401 - the method's own
        """See `Backend`."""
        self._known(method)
        return _plain(self._wait(self._manager.execute(method, params, timeout_s=timeout_s)))

    def stream(self, method: str, params: Mapping[str, Any], timeout_s: float | None) -> Generator[Any, None, None]:
        """See `Backend`."""
        self._known(method)
        parts: SimpleQueue[Any] = SimpleQueue()
        end = object()

        async def pump() -> None:
            """In one task from first to last, as what time-outs and cancels count on."""
            try:
                async with self._manager.stream(method, params, timeout_s=timeout_s) as stream:
                    async for part in stream:
                        parts.put(part)
            finally:
                parts.put(end)

        running = self._submit(pump())
        try:
            while (part := parts.get()) is not end:
                yield _plain(part)
            running.result()
        finally:
            running.cancel()

    def chat(self, body: Mapping[str, Any], timeout_s: float | None) -> Generator[dict[str, Any], None, None]:
        """See `Backend`."""
        return self.stream("llm/chat", body, timeout_s)

    def _known(self, method: str) -> None:
        """Say how to install what is missing, which `UnknownMethod` cannot know."""
        protocol = method.partition("/")[0]
        if protocol not in self._manager.providers:
            self._manager.host.provider_type(protocol)

    # -- the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.run(self._live())

    async def _live(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        self._started.set()
        await self._ended.wait()
        while self._tasks:  # what was cancelled may still be putting things right
            await asyncio.wait(self._tasks)

    def _end(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    def _submit(self, work: Coroutine[Any, Any, _T]) -> Future[_T]:
        if self._loop is None:
            work.close()
            raise ClosedError("the manager in this process is not started")
        return asyncio.run_coroutine_threadsafe(self._tracked(work), self._loop)

    async def _tracked(self, work: Coroutine[Any, Any, _T]) -> _T:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await work

    def _wait(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Wait for `work`; a Ctrl-C while waiting cancels it."""
        running = self._submit(work)
        try:
            return running.result()
        finally:
            running.cancel()


def _plain(value: object) -> Any:  # noqa: ANN401 - plain data
    """As a gateway would send it."""
    return to_jsonable_python(value, bytes_mode="base64", inf_nan_mode="null", fallback=str)


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end the program in order, so that no child process is left. Only the main thread can see to that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_: int, __: FrameType | None) -> None:
        raise SystemExit(_TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
