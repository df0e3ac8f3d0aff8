"""One Docker Engine: short calls through the SDK, in threads of their own; whatever takes long, on the loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from gleitzeit_docker import wire
from gleitzeit_docker.attach import AttachedStream, attach
from gleitzeit_docker.bridge import Bridge
from gleitzeit_docker.errors import Conflict, DockerError, EngineDown, NotFound, by_status

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping

    from docker.api.client import APIClient

    from gleitzeit_docker.address import Address

T = TypeVar("T")

# Whoever asks whether it is well within this time of another gets the same answer.
_PING_FOR_S: Final = 1.0
# When so long nothing has happened, it is asked whether it is well.
_SILENT_S: Final = 5.0
_REMOVAL_LOOKS_S: Final = 0.02


class Engine:
    """An engine. Connects when it is first needed; must be closed.

    Args:
        address: Where it is.
        name: What it is called.
        threads: How many blocking calls are made at once; its own, so that an engine that hangs holds up no other.
        timeout_s: How long one may take.
    """

    def __init__(self, address: Address, *, name: str, timeout_s: float, threads: int = 4) -> None:
        self.address, self.name, self.timeout_s = address, name, timeout_s
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=f"docker {name}")
        self._free = asyncio.Semaphore(threads)
        self._client: asyncio.Task[APIClient] | None = None
        self._bridge: Bridge | None = None
        self._ping: asyncio.Task[str] | None = None
        self._pinged_at = float("-inf")

    def __repr__(self) -> str:
        """Its name."""
        return f"<Engine {self.name}>"

    # -- asking --------------------------------------------------------------------------------------------------

    async def ping(self) -> str:
        """See whether it answers: the version of its API.

        Raises:
            EngineDown: It does not.
        """
        now = asyncio.get_running_loop().time()
        if self._ping is None or (self._ping.done() and now - self._pinged_at > _PING_FOR_S):
            self._ping, self._pinged_at = asyncio.create_task(self._pinged()), now
        return await asyncio.shield(self._ping)

    def doubt(self) -> None:
        """Something looks as if it were gone: the last answer counts no more."""
        if self._ping is not None and self._ping.done():
            self._ping = None

    async def _pinged(self) -> str:
        connection, headers = await wire.answer(self.address, "GET", "/_ping", timeout_s=self.timeout_s)
        await connection.aclose()
        return headers.get("api-version", "1.41")

    async def call(self, work: Callable[[Any], T]) -> T:
        """Make a blocking call in a thread. Cancelled, it waits for the end of the call, as nobody can stop it.

        Raises:
            EngineDown: No answer, or not in time.
            DockerError: The engine refuses.
        """
        async with self._free:
            # One that does not answer any more is to keep no thread, however many wait for theirs.
            await self.ping()
            client = await self._connected()
            loop = asyncio.get_running_loop()
            future = loop.run_in_executor(self._threads, partial(_translated, partial(work, client), self.address.url))
            return await to_its_end(future)

    async def _connected(self) -> APIClient:
        if self._client is None or (self._client.done() and (self._client.cancelled() or self._client.exception())):
            self._client = asyncio.create_task(self._connect())
        return await asyncio.shield(self._client)

    async def _connect(self) -> APIClient:
        version = await self.ping()
        if self.address.is_by_ssh and self._bridge is None:
            self._bridge = await Bridge.begin(self.address, timeout_s=self.timeout_s)
        url = self.address.url if self._bridge is None else self._bridge.url
        make = partial(_translated, partial(_client, self.address, url, version, self.timeout_s), self.address.url)
        return await asyncio.get_running_loop().run_in_executor(self._threads, make)

    # -- containers ------------------------------------------------------------------------------------------------

    async def create(self, name: str, config: Mapping[str, Any]) -> str:
        """Make a container, which does not run yet. Its id.

        Raises:
            NotFound: There is no such image.
        """
        found = await self.call(lambda client: client.create_container_from_config(dict(config), name))
        return str(found["Id"])

    async def attach(self, container: str) -> AttachedStream:
        """Its standard streams; to be called before it is started."""
        return await attach(self.address, container, timeout_s=self.timeout_s)

    async def start(self, container: str) -> None:
        """Let it run."""
        await self.call(lambda client: client.start(container))

    async def inspect(self, container: str) -> dict[str, Any]:
        """All that is known of it.

        Raises:
            NotFound: It is gone.
        """
        found: dict[str, Any] = await self.call(lambda client: client.inspect_container(container))
        return found

    async def containers(self, *labels: str) -> list[dict[str, Any]]:
        """Those with all these labels, whether they run or not."""
        filters = {"label": list(labels)}
        found: list[dict[str, Any]] = await self.call(lambda client: client.containers(all=True, filters=filters))
        return found

    async def remove(self, container: str) -> None:
        """Kill it and wait until it is gone. One that is gone already, or is being removed by others, is fine.

        Raises:
            EngineDown: No answer, or it is still there after the time that a call may take.
        """
        try:
            await self.call(lambda client: client.remove_container(container, v=True, force=True))
        except NotFound:
            return
        except Conflict:
            # "removal of container ... is already in progress": the engine does it, for us or for another.
            await self._gone(container)

    async def _gone(self, container: str) -> None:
        try:
            async with asyncio.timeout(self.timeout_s):
                with contextlib.suppress(NotFound):
                    while True:
                        await self.inspect(container)
                        await asyncio.sleep(_REMOVAL_LOOKS_S)
        except TimeoutError:
            raise EngineDown(f"{self.name}: the removal of {container[:12]} does not end", hangs=True) from None

    @contextlib.asynccontextmanager
    async def events(self, filters: Mapping[str, list[str]]) -> AsyncIterator[AsyncGenerator[dict[str, Any], None]]:
        """What happens from now on, until the connection ends. An engine that is silent is asked whether it is there.

        Raises:
            EngineDown: It is not.
        """
        query = {"filters": json.dumps(filters)}
        connection, _ = await wire.answer(self.address, "GET", "/events", query=query, timeout_s=self.timeout_s)
        try:
            async with contextlib.aclosing(self._heard(connection)) as events:
                yield events
        finally:
            await connection.aclose()

    async def _heard(self, connection: wire.Wire) -> AsyncGenerator[dict[str, Any], None]:
        while not connection.reader.at_eof():
            try:
                async for event in wire.json_lines(connection, stall_timeout_s=_SILENT_S):
                    yield event
            except EngineDown as error:
                if not error.hangs:
                    raise
                await self.ping()

    async def aclose(self) -> None:
        """Close the connections, for good."""
        for task in (self._ping, self._client):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        task, self._client = self._client, None
        if task is not None and not task.cancelled() and task.exception() is None:
            await asyncio.get_running_loop().run_in_executor(self._threads, task.result().close)
        if self._bridge is not None:
            await self._bridge.aclose()
        # A call that hangs ends by its own time-out; nobody needs to wait for that.
        self._threads.shutdown(wait=False)


async def to_its_end(future: asyncio.Future[T]) -> T:
    """Wait for what cannot be stopped; when cancelled, until it has ended, and then that."""
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            # Cancelled once more it is still not to be left alone; its time-out ends it.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait((future,))
        if not future.cancelled():
            future.exception()
        raise


def _client(address: Address, url: str, version: str, timeout_s: float) -> APIClient:
    from docker.api.client import APIClient  # noqa: PLC0415 - slow, so in a thread

    # The SDK's types know whole seconds only; requests, which it hands this on to, takes any.
    client = APIClient(url, version, timeout_s, address.tls_for_sdk())  # type: ignore[arg-type]
    # Else a proxy that is meant for the world would be asked for an engine on this machine.
    client.trust_env = False
    return client


def _translated(work: Callable[[], T], url: str) -> T:
    """Do `work`, with errors of this plugin's instead of the SDK's."""
    import requests  # noqa: PLC0415 - slow, so in a thread
    from docker.errors import APIError, DockerException  # noqa: PLC0415 - the same

    try:
        return work()
    except APIError as error:
        raise by_status(error.status_code or 0, str(error.explanation or error)) from error
    except requests.Timeout as error:
        raise EngineDown(f"{url} does not answer in time", hangs=True) from error
    except (requests.RequestException, OSError) as error:
        raise EngineDown(f"{url} cannot be reached: {error}") from error
    except DockerException as error:
        raise DockerError(f"{url}: {error}") from error
