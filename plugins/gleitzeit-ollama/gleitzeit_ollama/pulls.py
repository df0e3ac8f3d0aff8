"""Pulls of models, each made once, however many wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from gleitzeit_core.errors import ClosedError
from gleitzeit_core.resources import ResourceInstance
from gleitzeit_llm.models import canonical, capability, entries
from gleitzeit_ollama.downloads import PullProgress, Tell

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

Download: TypeAlias = Callable[[ResourceInstance, str, Tell, bool], Coroutine[Any, Any, None]]


def choose(
    instances: Iterable[ResourceInstance],
    model: str,
    running: Callable[[str], int] = lambda _: 0,
    *,
    replicas: int = 1,
    pulling: Callable[[ResourceInstance], object] = lambda _: False,
) -> tuple[ResourceInstance, ...]:
    """Where to pull a model to when nobody says: to all that have it already, which updates it, or else to some.

    Those have the most room: the fewest pulls, then the fewest models in memory for their weight, then the fewest bytes
    of models on disk for their weight.

    Args:
        instances: As they are now.
        model: Its name.
        running: How many pulls go to an instance, by its id.
        replicas: How many shall have it in the end, at least.
        pulling: Whether an instance is getting it now; those count as having it.
    """
    there = tuple(instances)
    have = tuple(i for i in there if capability(model) in i.capabilities or pulling(i))

    def occupied(instance: ResourceInstance) -> tuple[int, float, float, str]:
        sizes = (entry.get("size") for entry in entries(instance).values())
        stored_bytes = sum(size for size in sizes if isinstance(size, int))
        weight = instance.weight
        return running(instance.id), len(instance.warm) / weight, stored_bytes / weight, instance.id

    theirs = {instance.id for instance in have}
    others = sorted((instance for instance in there if instance.id not in theirs), key=occupied)
    return have + tuple(others[: max(0, replicas - len(have))])


@dataclass(slots=True, eq=False)
class _Follower:
    tell: Tell
    done: asyncio.Future[None]

    def settle(self, error: BaseException | None) -> None:
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


@dataclass(slots=True, eq=False)
class _Pull:
    """A download under way, and who waits for it."""

    key: tuple[str, str, bool]
    followers: list[_Follower] = field(default_factory=list)
    steps: dict[tuple[str, str], PullProgress] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None

    def tell(self, step: PullProgress) -> None:
        """Tell all. One whose callback fails has failed alone."""
        self.steps[step.status, step.digest] = step
        for follower in tuple(self.followers):
            try:
                follower.tell(step)
            except Exception as error:  # noqa: BLE001 - the follower's own
                follower.settle(error)

    def end(self, error: BaseException | None) -> None:
        for follower in self.followers:
            follower.settle(error)


class Pulls:
    """The downloads under way, at most one for each instance and model.

    Args:
        download: Makes one: gets the instance, the model, whom to tell, and whether the registry need not be secure.
    """

    def __init__(self, download: Download) -> None:
        self._download = download
        self._running: dict[tuple[str, str, bool], _Pull] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        """How many, and how many wait for them."""
        waiting = sum(len(pull.followers) for pull in self._running.values())
        return f"<Pulls {len(self._running)} running, {waiting} waiting>"

    def running(self, instance_id: str, model: str = "") -> int:
        """How many go to this instance; only those of `model` when it is given."""
        return sum(
            1 for instance, name, _ in self._running if instance == instance_id and name == canonical(model or name)
        )

    async def follow(self, instance: ResourceInstance, model: str, tell: Tell, *, insecure: bool = False) -> None:
        """Wait until `instance` has pulled `model`; begin that if nobody has.

        Who comes late is first told what happened so far. Who is cancelled leaves the others alone; the last to leave
        ends the download, and returns when its connection is closed. Only those join who agree on `insecure`: whether
        the registry may be one without a certificate.

        Raises:
            InstanceFailure: The pull failed.
            ClosedError: The hub was closed.
        """
        pull = self._join(instance, model, insecure=insecure)
        follower = _Follower(tell, asyncio.get_running_loop().create_future())
        pull.followers.append(follower)
        try:
            for step in tuple(pull.steps.values()):
                tell(step)
            await follower.done
        finally:
            await self._leave(pull, follower)

    def _join(self, instance: ResourceInstance, model: str, *, insecure: bool) -> _Pull:
        key = (instance.id, canonical(model), insecure)
        pull = self._running.get(key)
        if pull is None:
            # Whoever began it may leave before it ends, so it runs on its own and tells through `pull`.
            pull = self._running[key] = _Pull(key)
            work = self._download(instance, model, pull.tell, insecure)
            pull.task = asyncio.create_task(work, name=f"pull of {model} to {instance.id}")
            self._tasks.add(pull.task)
            pull.task.add_done_callback(lambda task: self._ended(pull, task))
        return pull

    def _ended(self, pull: _Pull, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._forget(pull)
        if task.cancelled():
            pull.end(ClosedError(f"the pull of {pull.key[1]!r} was ended: its hub is closed"))
        else:
            pull.end(task.exception())

    async def _leave(self, pull: _Pull, follower: _Follower) -> None:
        pull.followers.remove(follower)
        if pull.followers or pull.task is None or pull.task.done():
            return
        self._forget(pull)
        pull.task.cancel()
        await asyncio.wait((pull.task,))

    def _forget(self, pull: _Pull) -> None:
        if self._running.get(pull.key) is pull:
            del self._running[pull.key]

    async def aclose(self) -> None:
        """End all downloads; those who wait get a `ClosedError`. Returns when the connections are closed."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Feed:
    """Steps on their way to one reader. A slow one misses only steps that newer ones of the same part outdate."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, str, str], PullProgress] = {}
        self._news = asyncio.Event()
        self._ended = False

    def put(self, step: PullProgress) -> None:
        """Add a step."""
        self._waiting[step.instance_id, step.status, step.digest] = step
        self._news.set()

    def end(self) -> None:
        """No more will come."""
        self._ended = True
        self._news.set()

    async def __aiter__(self) -> AsyncIterator[PullProgress]:
        """All steps until the end."""
        while True:
            while self._waiting:
                yield self._waiting.pop(next(iter(self._waiting)))
            if self._ended:
                return
            self._news.clear()
            await self._news.wait()
