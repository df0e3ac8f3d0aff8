"""Models that are being loaded, and what becomes of a load whose caller leaves.

Ollama answers nothing until a model is loaded, and gives a load up when the connection of the request that began it is
closed. So the connection of a request whose caller leaves before its answer begins is kept, without the caller, while
others wait for the same model on the same instance: until the first of them is answered, or until none is left.

Since nothing but the deadline bounds such a wait, an instance that goes down meanwhile ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from aiohttp import ClientError

from gleitzeit_core.pool import State
from gleitzeit_core.resources import HttpChannel

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from gleitzeit_core.hookspecs import InstanceChange
    from gleitzeit_core.requests import Request
    from gleitzeit_core.resources import ResourceInstance
    from gleitzeit_core.shell import Shell
    from gleitzeit_llm.connection import Connection
    from gleitzeit_llm.upstream import Upstream

_INSTANCES_MAX: Final = 4096
# So long an instance that is down may take to prove that it is not.
_DOWN_S: Final = 1.0


class Downs:
    """Has requests that wait for an instance fail when it goes down, so that they can be tried elsewhere.

    Args:
        shell: Where instances are.
        upstream: On which requests wait.
    """

    def __init__(self, shell: Shell, upstream: Upstream) -> None:
        self._shell, self._upstream = shell, upstream

    def heard(self, change: InstanceChange) -> None:
        """An instance has changed."""
        if change.state == State.DOWN and change.after is not None:
            self._shell.clock.call_at(self._shell.clock.monotonic() + _DOWN_S, partial(self._look, change.after))

    def _look(self, instance: ResourceInstance) -> None:
        record = self._shell.admission.pool.records.get(instance.id)
        if record is None or record.state is not State.DOWN or record.instance.generation != instance.generation:
            return
        for _, channel in instance.offers:
            if isinstance(channel, HttpChannel):
                self._upstream.give_up(channel, f"went down before it answered: {record.reason}")


class Loads:
    """The loads of one client, as far as requests wait for them."""

    def __init__(self) -> None:
        self._loads: dict[tuple[str, int, frozenset[str]], _Load] = {}
        self._kept: dict[tuple[str, str], asyncio.Task[None]] = {}
        # What has answered on an instance since its hub last said what is in its memory.
        self._answered: dict[str, tuple[frozenset[str], set[frozenset[str]]]] = {}

    def __repr__(self) -> str:
        """Counts."""
        return f"<Loads {len(self._loads)} under way, {len(self._kept)} kept without their callers>"

    def waiting(self, instance: ResourceInstance, request: Request) -> Waiting | None:
        """With what `request` is to wait for its answer; None where its model is in memory already."""
        needs = request.requirements.capabilities
        loads = self._loads and _key(instance, needs) in self._loads
        if not loads and (needs <= instance.warm or self._has_answered(instance, needs)):
            return None
        return Waiting(self, instance, request)

    def kept(self, instance: ResourceInstance, request: Request) -> asyncio.Task[None] | None:
        """What ends when the work on `request`, whose caller has left, has stopped; None when it has."""
        return self._kept.get((request.id, instance.id))

    async def aclose(self) -> None:
        """End all that is kept."""
        kept = [*self._kept.values()]
        for task in kept:
            task.cancel()
        await asyncio.gather(*kept, return_exceptions=True)

    # -- for those who wait ------------------------------------------------------------------------------------

    def join(self, instance: ResourceInstance, needs: frozenset[str]) -> _Load:
        """One more waits."""
        load = self._loads.setdefault(_key(instance, needs), _Load())
        load.waiting += 1
        return load

    def leave(self, instance: ResourceInstance, needs: frozenset[str], load: _Load) -> None:
        """One waits no more; nobody keeps a connection for others when there are none."""
        load.waiting -= 1
        if not load.waiting:
            self._end(instance, needs, load)

    def answered(self, instance: ResourceInstance, needs: frozenset[str], load: _Load) -> None:
        """Somebody has an answer: the model is loaded."""
        known = self._answered.get(instance.id)
        if known is None or known[0] is not instance.warm:
            if len(self._answered) >= _INSTANCES_MAX:
                self._answered.clear()
            known = self._answered[instance.id] = (instance.warm, set())
        known[1].add(needs)
        self._end(instance, needs, load)

    def keep(self, instance: ResourceInstance, request: Request, load: _Load, connection: Connection) -> None:
        """Keep a connection without its caller."""
        key = (request.id, instance.id)
        task = load.kept[connection] = self._begun(key, self._until_answered(instance, request, load, connection))
        # Also when it is cancelled before it has begun.
        task.add_done_callback(lambda _: connection.abort())

    def keep_work(
        self, instance: ResourceInstance, request: Request, work: Coroutine[Any, Any, None]
    ) -> asyncio.Task[None]:
        """Let `work` go on even when the caller leaves."""
        return self._begun((request.id, instance.id), work)

    def _begun(self, key: tuple[str, str], work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._kept[key] = asyncio.ensure_future(work)
        task.add_done_callback(lambda _: self._kept.pop(key, None))
        # What fails for nobody is quiet.
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return task

    async def _until_answered(
        self, instance: ResourceInstance, request: Request, load: _Load, connection: Connection
    ) -> None:
        with contextlib.suppress(ClientError, OSError):
            await connection.head()
            self.answered(instance, request.requirements.capabilities, load)

    def _end(self, instance: ResourceInstance, needs: frozenset[str], load: _Load) -> None:
        if self._loads.get(_key(instance, needs)) is load:
            del self._loads[_key(instance, needs)]
        load.end()

    def _has_answered(self, instance: ResourceInstance, needs: frozenset[str]) -> bool:
        known = self._answered.get(instance.id)
        return known is not None and known[0] is instance.warm and needs in known[1]


def _key(instance: ResourceInstance, needs: frozenset[str]) -> tuple[str, int, frozenset[str]]:
    return instance.id, instance.generation, needs


class _Load:
    """A load of a model on an instance.

    Attributes:
        waiting: How many callers wait for it.
        kept: The connections of those who have left.
        over: Whether it is done with.
    """

    __slots__ = ("kept", "over", "waiting")

    def __init__(self) -> None:
        self.waiting = 0
        self.kept: dict[Connection, asyncio.Task[None]] = {}
        self.over = False

    def end(self) -> None:
        """It is done with: nothing is kept any more."""
        self.over = True
        for connection, task in self.kept.items():
            connection.abort()
            task.cancel()


class Waiting:
    """The wait of one request for the head of its answer.

    Args:
        loads: All of them.
        instance: Where it was sent.
        request: It.

    Attributes:
        kept: Whether its connection is kept although its caller has left.
    """

    __slots__ = ("_instance", "_loads", "_request", "kept")

    def __init__(self, loads: Loads, instance: ResourceInstance, request: Request) -> None:
        self._loads, self._instance, self._request = loads, instance, request
        self.kept = False

    async def head(self, connection: Connection) -> None:
        """Wait until the head of the answer is there.

        Raises:
            ClientError, OSError: It does not come any more.
        """
        loads, instance, needs = self._loads, self._instance, self._request.requirements.capabilities
        load = loads.join(instance, needs)
        try:
            await connection.head()
            loads.answered(instance, needs, load)
        except asyncio.CancelledError:
            if load.waiting > 1 and not load.over:
                self.kept = True
                loads.keep(instance, self._request, load, connection)
            raise
        finally:
            loads.leave(instance, needs, load)
