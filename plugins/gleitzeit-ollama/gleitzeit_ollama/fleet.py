"""The Ollama servers of several hubs as one: where a model goes, and what managing models means over all of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from gleitzeit_core.errors import InstanceFailure, InvalidRequest, NoCapableInstance, Unavailable, UnknownName
from gleitzeit_llm.models import canonical, capability
from gleitzeit_ollama.downloads import SUCCESS, Job, Tell
from gleitzeit_ollama.merging import Merged, combined
from gleitzeit_ollama.pulls import Feed, choose

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence

    from gleitzeit_core.resources import ResourceInstance
    from gleitzeit_ollama.hub import OllamaHub
    from gleitzeit_ollama.where import Where

_ABSENT: Final = 404


@dataclass(frozen=True, slots=True)
class Member:
    """An instance and the hub that has it."""

    hub: OllamaHub
    instance: ResourceInstance

    @property
    def id(self) -> str:
        """The instance's."""
        return self.instance.id

    def has(self, model: str) -> bool:
        """Whether it had the model when it was last asked."""
        return capability(model) in self.instance.capabilities

    def is_pulling(self, model: str) -> bool:
        """Whether it is getting the model now."""
        return bool(self.hub.pulls.running(self.id, model))


Work: TypeAlias = Callable[[Member, Tell], Awaitable[None]]
Line: TypeAlias = dict[str, Any]


class Fleet:
    """See the module's text. Static instances, and those whose models are configured, are left alone.

    Args:
        hubs: They run.
        resting: Ids of instances that get nothing new unless they are named; what they have can be deleted.
    """

    def __init__(self, hubs: Iterable[OllamaHub], resting: Collection[str] = ()) -> None:
        self._hubs, self._resting = tuple(hubs), frozenset(resting)

    def __repr__(self) -> str:
        """How many hubs."""
        return f"<Fleet of {len(self._hubs)} hubs>"

    # -- who -----------------------------------------------------------------------------------------------------

    async def answering(self) -> list[Member]:
        """Those that answer now, as they are now.

        Raises:
            NoCapableInstance: There is none whose models may be changed.
            Unavailable: None of them answers.
        """
        results = await asyncio.gather(*(hub.survey() for hub in self._hubs), return_exceptions=True)
        found, reasons = [], []
        for hub, result in zip(self._hubs, results, strict=True):
            if isinstance(result, BaseException):
                reasons.append(result)
            else:
                found += [Member(hub, instance) for instance in result if instance.id not in self._resting]
        if not found and len(reasons) < len(self._hubs):
            raise Unavailable("all instances whose models may be changed are drained")
        if not found:
            # What is down matters more than what may not be asked.
            raise next((why for why in reasons if not isinstance(why, NoCapableInstance)), _first(reasons))
        return found

    def known(self) -> list[Member]:
        """All of them, whether they answer or not.

        Raises:
            NoCapableInstance: There is none whose models may be changed.
        """
        found, reasons = [], []
        for hub in self._hubs:
            try:
                found += [Member(hub, instance) for instance in hub.open_to_models()]
            except NoCapableInstance as error:
                reasons.append(error)
        if not found:
            raise _first(reasons)
        return found

    def named(self, names: Iterable[str]) -> list[Member]:
        """Those with these ids, names or URLs, each once.

        Raises:
            InvalidRequest: There is no such instance, or its models may not be changed.
        """
        found = [self._named(name) for name in names]
        return list({member.id: member for member in found}.values())

    def _named(self, name: str) -> Member:
        for hub in self._hubs:
            with contextlib.suppress(UnknownName):
                return Member(hub, hub.named([name])[0])
        known = sorted(instance.id for hub in self._hubs for instance in hub.instances)
        raise InvalidRequest(f"there is no instance {name!r} that models can be managed on; known: {', '.join(known)}")

    def everywhere(self, where: Where) -> list[Member]:
        """Those that are named, or else all."""
        return self.named(where.named) if where.named else self.known()

    # -- what takes long -------------------------------------------------------------------------------------------

    async def targets(self, model: str, where: Where) -> list[Member]:
        """Where a model goes: where the caller says; or where it is or is coming to already, or else to one."""
        if where.named:
            return self.named(where.named)
        there = await self.answering()
        return there if where.every else _enough(there, where, _choose(there, model, where.replicas or 1))

    def pull(self, members: Sequence[Member], model: str, *, insecure: bool = False) -> AsyncGenerator[Line, None]:
        """Pull a model to all of these at once, and yield what to tell as Ollama tells it.

        Close the iterator when leaving early; that ends the pulls that nobody else waits for.

        Raises:
            InstanceFailure: It failed on one of them; raised when all have ended.
        """

        async def work(member: Member, tell: Tell) -> None:
            await member.hub.pulls.follow(member.instance, model, tell, insecure=insecure)

        return _progress(members, work)

    def carry_out(self, members: Sequence[Member], job: Job) -> AsyncGenerator[Line, None]:
        """Have all of these do a job at once, as `pull` does."""

        async def work(member: Member, tell: Tell) -> None:
            await member.hub.carry_out(member.instance, job, tell)

        return _progress(members, work)

    async def creators(self, job: Job, where: Where) -> list[Member]:
        """Where a model is created when nobody says: where it is already; or where what it is made from is.

        Blobs that were uploaded for it must be there in any case. Of several one is chosen, as for a pull.
        """
        if where.named:
            return self.named(where.named)
        there = await self.answering()
        if where.every:
            return there
        with_blobs = await self.having(there, _blobs(job.fields)) or there
        if not any(member.has(job.model) for member in with_blobs):
            source = str(job.fields.get("from") or "")
            with_blobs = [member for member in with_blobs if member.has(source)] or with_blobs
        return _enough(with_blobs, where, _choose(with_blobs, job.model, where.replicas or 1))

    async def having(self, members: Sequence[Member], digests: Sequence[str]) -> list[Member]:
        """Those that have all these blobs."""
        asked = await asyncio.gather(*(_has_all(member, digests) for member in members))
        return [member for member, has in zip(members, asked, strict=True) if has]

    async def pusher(self, model: str, where: Where) -> list[Member]:
        """One that has the model; where none has, any, which says so."""
        there = self.named(where.named) if where.named else await self.answering()
        return sorted(there, key=lambda member: (not member.has(model), member.id))[:1]

    # -- what is done at once ------------------------------------------------------------------------------------

    async def on_all(self, members: Sequence[Member], method: str, path: str, body: bytes, model: str) -> list[Member]:
        """Make a call on all of these that have a model. Those that have not are passed over.

        Args:
            members: Whom to ask.
            method: HTTP method.
            path: Of the call.
            body: As the caller sent it.
            model: What it is about.

        Returns:
            Those that did it; the pool knows of it.

        Raises:
            InstanceFailure: None has the model, in a server's own words; or one that has it, or may have, could not.
        """
        results = await asyncio.gather(
            *(member.hub.ask(member.instance, method, path, body) for member in members), return_exceptions=True
        )
        pairs = list(zip(members, results, strict=True))
        did = [member for member, result in pairs if not isinstance(result, BaseException)]
        await asyncio.gather(*map(_refreshed, did))
        absent = [result for _, result in pairs if isinstance(result, InstanceFailure) and result.status == _ABSENT]
        broken = [
            (member, result) for member, result in pairs if isinstance(result, BaseException) and result not in absent
        ]
        # One that is down and was not known to have the model is no reason to fail; unless nothing else is known.
        serious = [result for member, result in broken if member.has(model)]
        if serious or not (did or absent):
            raise combined(serious or [result for _, result in broken])
        if not did:
            raise absent[0]
        return did

    async def load(self, model: str, where: Where, keep_alive: object = None) -> list[Member]:
        """Load a model into memory where the caller says, or else on the one with most room of those that have it.

        Args:
            model: Its name.
            where: Instances that lack it are not asked, unless they are named.
            keep_alive: For how long, in Ollama's words; None for the server's default.

        Raises:
            NoCapableInstance: Nobody has it.
            InstanceFailure: It could not be loaded.
        """
        if where.named:
            targets = self.named(where.named)
        else:
            have = _with(await self.answering(), model)
            loaded = [member for member in have if capability(model) in member.instance.warm]
            count = len(have) if where.every else where.replicas or 1
            others = [member for member in have if member not in loaded]
            targets = (loaded + _choose(others, "", count))[:count]
        return await self._keep(targets, model, keep_alive)

    async def unload(self, model: str, where: Where) -> list[Member]:
        """Take a model out of memory everywhere, or where the caller says.

        Returns:
            Those that had it there.

        Raises:
            NoCapableInstance: Nobody has it.
            InstanceFailure: One could not.
        """
        if where.named:
            targets = self.named(where.named)
        else:
            have = _with(await self.answering(), model)
            targets = [member for member in have if capability(model) in member.instance.warm]
        return await self._keep(targets, model, 0)

    async def show(self, model: str, where: Where) -> Mapping[str, Any]:
        """What one that has a model says about it.

        Raises:
            NoCapableInstance: Nobody has it.
            InstanceFailure: It could not say.
        """
        there = self.named(where.named) if where.named else _with(await self.answering(), model)
        answer: Mapping[str, Any] = (
            await there[0].hub.ask(there[0].instance, "POST", "/api/show", {"model": model})
        ).json()
        return answer

    async def _keep(self, targets: Sequence[Member], model: str, keep_alive: object) -> list[Member]:
        body: dict[str, Any] = {"model": model, "stream": False}
        if keep_alive is not None:
            body["keep_alive"] = keep_alive
        works = (
            member.hub.ask(
                member.instance, "POST", "/api/generate", body, limit_s=member.hub.options.pull_stall_timeout_s
            )
            for member in targets
        )
        results = await asyncio.gather(*works, return_exceptions=True)
        await asyncio.gather(*map(_refreshed, targets))
        failures = [result for result in results if isinstance(result, BaseException)]
        if failures:
            raise combined(failures)
        return list(targets)


async def _progress(members: Sequence[Member], work: Work) -> AsyncGenerator[Line, None]:
    feed, merged = Feed(), Merged(member.id for member in members)

    async def one(member: Member) -> None:
        try:
            await work(member, feed.put)
        finally:
            merged.drop(member.id)

    doing = asyncio.gather(*map(one, members), return_exceptions=True)
    doing.add_done_callback(lambda _: feed.end())
    try:
        async for step in feed:
            line = merged.line(step)
            if line is not None:
                yield line
        failures = [result for result in await doing if isinstance(result, BaseException)]
        if failures:
            raise combined(failures)
        yield {"status": SUCCESS}
    finally:
        doing.cancel()
        await asyncio.gather(doing, return_exceptions=True)


async def _refreshed(member: Member) -> None:
    """Let the pool know of a change; where the server does not answer now, its health checks will say so."""
    with contextlib.suppress(InstanceFailure):
        await member.hub.refreshed(member.instance)


async def _has_all(member: Member, digests: Sequence[str]) -> bool:
    try:
        for digest in digests:
            await member.hub.ask(member.instance, "HEAD", f"/api/blobs/{digest}")
    except InstanceFailure:
        return False
    return True


def _blobs(fields: Mapping[str, Any]) -> list[str]:
    """The digests that a creation names. What has not the form of one is for the server to refuse."""
    groups = [group for key in ("files", "adapters") if isinstance(group := fields.get(key), dict)]
    return [digest for group in groups for digest in group.values() if is_digest(digest)]


def is_digest(text: object) -> bool:
    """Whether it has the form of a blob's digest, and is safe in a path."""
    if not isinstance(text, str) or text[:7] not in ("sha256:", "sha256-"):
        return False
    return len(text) == len("sha256:") + 64 and set(text[7:]) <= set("0123456789abcdef")


def _choose(members: Sequence[Member], model: str, replicas: int) -> list[Member]:
    by_id = {member.id: member for member in members}
    chosen = choose(
        [member.instance for member in members],
        model,
        lambda name: by_id[name].hub.pulls.running(name),
        replicas=replicas,
        pulling=lambda instance: by_id[instance.id].is_pulling(model),
    )
    return [by_id[instance.id] for instance in chosen]


def _enough(members: Sequence[Member], where: Where, chosen: list[Member]) -> list[Member]:
    """`chosen`, unless there are fewer than the caller wants."""
    if len(chosen) < where.replicas:
        found = ", ".join(member.instance.endpoint for member in members) or "none"
        text = f"{where.replicas} servers are to have it, and there are {len(members)} to choose from: {found}"
        raise InvalidRequest(text)
    return chosen


def _with(members: Sequence[Member], model: str) -> list[Member]:
    have = [member for member in members if member.has(model)]
    if not have:
        raise NoCapableInstance(f"model '{canonical(model)}' not found", needed=[capability(model)])
    return have


def _first(reasons: Sequence[BaseException]) -> BaseException:
    return reasons[0] if reasons else NoCapableInstance("there is no Ollama server whose models can be managed here")
