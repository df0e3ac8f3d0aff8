"""The hub of Ollama servers: configured, found on this machine, or started here; and their models."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final

from gleitzeit_core.errors import (
    FailureKind,
    InstanceFailure,
    InvalidRequest,
    NoCapableInstance,
    Unavailable,
    UnknownName,
)
from gleitzeit_core.resources import Ownership, ResourceInstance
from gleitzeit_llm.failures import explaining
from gleitzeit_llm.models import capability
from gleitzeit_llm.server_hub import channel_of
from gleitzeit_ollama.addresses import normalised, without_aliases
from gleitzeit_ollama.discovery import Discovery
from gleitzeit_ollama.downloads import Job, PullProgress, Tell, carry_out
from gleitzeit_ollama.managed import KeepingHub
from gleitzeit_ollama.options import InstanceOptions, OllamaOptions
from gleitzeit_ollama.pulls import Feed, Pulls, choose

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence

    from gleitzeit_llm.upstream import Reply

logger = logging.getLogger(__name__)

PROMPT_S: Final = 60.0
"""What a server does at once, such as a deletion, may take so long: its disk may be busy."""


class OllamaHub(KeepingHub):
    """Ollama servers: those that are configured, found on this machine, added by hand, or started here.

    Only those that are started here are ever stopped.

    Args:
        options: None to discover what there is on this machine.
        name: As in the configuration; ``ollama`` when empty.

    Attributes:
        pulls: The downloads under way.
    """

    adaptable = KeepingHub.adaptable | {"discover", "discover_ports", "pull_stall_timeout_s"}

    def __init__(self, options: OllamaOptions | None = None, *, name: str = "") -> None:
        super().__init__(OllamaOptions() if options is None else options, name=name)
        self.pulls = Pulls(self._download)
        self._discovery: Discovery | None = None

    # -- as every hub ------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open what it needs; see `KeepingHub.open`."""
        self._set_discovery()
        await super().open()

    async def discover(self) -> Iterable[ResourceInstance]:
        """The configured instances; servers that were found are published here, since they have just answered."""
        if self._discovery is not None:
            known = [instance.endpoint for instance in (*self._configured.values(), *self.instances)]
            for found in await self._discovery.search(known):
                if found.id not in self._excluded:
                    logger.info("hub %s: found an Ollama server at %s", self.name, found.endpoint)
                    self.publish(found)
        return await super().discover()

    async def reconfigure(self, options: OllamaOptions) -> bool:
        """Take other options where that needs no restart; see `KeepingHub.reconfigure`."""
        if not await super().reconfigure(options):
            return False
        self._set_discovery()
        return True

    def refuse_alias(self, instance: ResourceInstance) -> None:
        """Refuse a server that is there already by another of the usual names of loopback, or is one of our own."""
        for known in self.instances:
            same = without_aliases(known.endpoint) == without_aliases(instance.endpoint)
            if same and known.ownership is not Ownership.EXTERNAL:
                raise InvalidRequest(f"{known.endpoint} is a server that was started here", param="url")
            if same and known.id != instance.id:
                raise InvalidRequest(f"that server is there already, as {known.endpoint}", param="url")

    async def close(self) -> None:
        """End the pulls under way, the servers that are ours and the HTTP client."""
        try:
            await self.pulls.aclose()
        finally:
            await super().close()

    # -- models ------------------------------------------------------------------------------------------------

    async def ensure_model(
        self, model: str, *, instances: Iterable[str] | None = None, progress: Tell | None = None
    ) -> tuple[str, ...]:
        """See to it that a model is there, pulling it where it is missing.

        However many ask for the same model on the same instance, it is pulled once, and all hear of its progress. Who
        is cancelled leaves the others alone; the last to leave ends the pull.

        Args:
            model: Its name, such as ``llama3.2`` or ``llama3.2:1b``.
            instances: On each of these, by id, name or URL. None: on any; when none has it, on the one with most room.
            progress: Called with each step; must return at once.

        Returns:
            The ids of the instances that had to pull it; empty when it was there.

        Raises:
            InstanceFailure: A pull failed.
            InvalidRequest: An instance may not be asked to pull, or `model` is empty.
            UnknownName: There is no such instance.
            NoCapableInstance: There is no instance at all that may be asked.
            Unavailable: None of them answers.
        """
        _check_name(model)
        if instances is None:
            answering = await self.survey()
            targets = () if _with(model, answering) else self._choice(model, answering)
        else:
            named = await self._all_refreshed(self.named(instances))
            targets = tuple(instance for instance in named if not _with(model, [instance]))
        await self._pull_to(targets, model, progress or _ignore)
        return tuple(instance.id for instance in targets)

    async def pull(self, model: str, *, instances: Iterable[str] | None = None) -> AsyncGenerator[PullProgress, None]:
        """Pull a model even where it is there, which updates it, and yield the progress.

        Leave the iteration early with `aclose` (`contextlib.aclosing`); that ends the pull unless others wait for it.

        Args:
            model: Its name.
            instances: To each of these, by id, name or URL. None: to all that have it, or else to the one with the most
                room.

        Raises:
            RequestError, UnknownName: As for `ensure_model`; with several instances, when all have ended.
        """
        _check_name(model)
        targets = self.named(instances) if instances is not None else self._choice(model, await self.survey())
        feed = Feed()
        work = asyncio.create_task(self._pull_to(targets, model, feed.put))
        work.add_done_callback(lambda _: feed.end())
        try:
            async for step in feed:
                yield step
            await work
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def survey(self) -> tuple[ResourceInstance, ...]:
        """The instances that may be asked to pull and that answer now, as they are now.

        Raises:
            NoCapableInstance: There is none that may be asked.
            Unavailable: None of them answers.
        """
        asked = self.open_to_models()
        results = await asyncio.gather(*map(self.refreshed, asked), return_exceptions=True)
        answering = tuple(result for result in results if isinstance(result, ResourceInstance))
        if not answering:
            reasons = "; ".join(str(result) for result in results)
            raise Unavailable(f"no instance of hub {self.name!r} answers: {reasons}", instances=[i.id for i in asked])
        return answering

    def open_to_models(self) -> tuple[ResourceInstance, ...]:
        """The instances whose models may be changed: all but static ones, and those whose models are configured.

        Raises:
            NoCapableInstance: There is none.
        """
        found = tuple(instance for instance in self.instances if not _why_not(instance))
        if not found:
            raise NoCapableInstance(f"hub {self.name!r} {self._why_none()}")
        return found

    def find(self, given: str) -> ResourceInstance:
        """The instance with this id, name or URL.

        Raises:
            UnknownName: There is none.
        """
        url = ""
        with contextlib.suppress(ValueError):
            url = without_aliases(normalised(given))
        for instance in self.instances:
            names = (instance.id, _options(instance).name or instance.id)
            if given in names or url == without_aliases(instance.endpoint):
                return instance
        raise UnknownName("instance", given, [instance.id for instance in self.instances], are="there is")

    def named(self, given: Iterable[str]) -> tuple[ResourceInstance, ...]:
        """The instances with these ids, names or URLs, each once.

        Raises:
            UnknownName: There is no such instance.
            InvalidRequest: The models of one of them may not be changed.
        """
        found = {instance.id: instance for instance in map(self.find, given)}
        for instance in found.values():
            why_not = _why_not(instance)
            if why_not:
                raise InvalidRequest(f"no model can be pulled to {instance.endpoint}: {why_not}")
        return tuple(found.values())

    async def refreshed(self, instance: ResourceInstance) -> ResourceInstance:
        """An instance as it is now, made known to all.

        Raises:
            InstanceFailure: It is not well.
        """
        timeout_s = self.options.check_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                now = await self.check(instance)
        except TimeoutError:
            text = f"{instance.endpoint} did not answer within {timeout_s:g} s"
            raise InstanceFailure(FailureKind.TIMEOUT, text, instance_id=instance.id) from None
        if instance.id in self._known:
            self.publish(now)
        return now

    async def carry_out(self, instance: ResourceInstance, job: Job, tell: Tell) -> None:
        """Have an instance do a job, telling each step. When it tells of success, the pool knows what has changed.

        Raises:
            InstanceFailure: It could not, or broke off.
        """
        stall_s = self.options.pull_stall_timeout_s
        success = await carry_out(self._upstream, instance, channel_of(instance), job, tell=tell, stall_s=stall_s)
        # Whoever hears of the success may ask for the model at once, so it must be known by then. If the server does
        # not answer now, its health checks will say so.
        with contextlib.suppress(InstanceFailure):
            await self.refreshed(instance)
        tell(success)

    async def ask(
        self,
        instance: ResourceInstance,
        method: str,
        path: str,
        payload: bytes | Mapping[str, Any] | None = None,
        *,
        limit_s: float = PROMPT_S,
    ) -> Reply:
        """One call to an instance, for at most `limit_s` seconds.

        Raises:
            InstanceFailure: It did not succeed; in the server's own words, where it has any.
        """
        try:
            async with asyncio.timeout(limit_s):
                with explaining("ollama", same_api=True):
                    return await self._upstream.request(channel_of(instance), method, path, payload)
        except InstanceFailure as failure:
            failure.instance_id = instance.id
            raise
        except TimeoutError:
            text = f"{instance.endpoint} did not answer {method} {path} within {limit_s:g} s"
            raise InstanceFailure(FailureKind.TIMEOUT, text, instance_id=instance.id) from None

    # -- inside ------------------------------------------------------------------------------------------------

    def _set_discovery(self) -> None:
        ports, timeout_s = self.options.discover_ports, self.options.check_timeout_s
        self._discovery = (
            Discovery(ports, self._look_at, resolve_timeout_s=timeout_s) if self.options.discover else None
        )

    async def _look_at(self, url: str) -> ResourceInstance | None:
        """The instance at a URL, when an Ollama server answers there."""
        # Not validated: OLLAMA_HOST may have a path, options must not.
        options = InstanceOptions(url="localhost").model_copy(update={"url": url})
        try:
            async with asyncio.timeout(self.options.check_timeout_s):
                return await self.check(self.described(options, None))
        except (InstanceFailure, TimeoutError) as error:
            logger.debug("hub %s: nothing to pool at %s: %s", self.name, url, error)
            return None

    async def _all_refreshed(self, instances: Iterable[ResourceInstance]) -> list[ResourceInstance]:
        """All of them as they are now; the first failure, when all have answered."""
        results = await asyncio.gather(*map(self.refreshed, instances), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return [result for result in results if isinstance(result, ResourceInstance)]

    def _why_none(self) -> str:
        if self.instances:
            return "has no instance that a model can be pulled to"
        ports = ", ".join(map(str, self.options.discover_ports))
        return f"has found no Ollama server, neither at OLLAMA_HOST nor on loopback ports {ports}"

    def _choice(self, model: str, answering: Sequence[ResourceInstance]) -> tuple[ResourceInstance, ...]:
        """Where to pull to: where that is being done already, or as `choose` says."""
        pulling = tuple(instance for instance in answering if self.pulls.running(instance.id, model))
        return pulling or choose(answering, model, self.pulls.running)

    async def _pull_to(self, targets: Iterable[ResourceInstance], model: str, tell: Tell) -> None:
        """To all at once; what fails is raised when all have ended."""
        works = [self.pulls.follow(instance, model, tell) for instance in targets]
        results = await asyncio.gather(*works, return_exceptions=True)
        failures = [result for result in results if result is not None]
        if len(failures) > 1 and all(isinstance(failure, InstanceFailure) for failure in failures):
            raise InstanceFailure(FailureKind.SERVER_ERROR, "; ".join(map(str, failures)))
        if failures:
            raise failures[0]

    async def _download(self, instance: ResourceInstance, model: str, tell: Tell, insecure: bool) -> None:  # noqa: FBT001 - as `Pulls` calls it
        await self.carry_out(instance, Job("pull", model, {"insecure": True} if insecure else {}), tell)


def _options(instance: ResourceInstance) -> InstanceOptions:
    options: InstanceOptions = instance.handle
    return options


def _check_name(model: str) -> None:
    if not model.strip():
        raise InvalidRequest("a model's name is needed", param="model")


def _why_not(instance: ResourceInstance) -> str:
    """Why no model can be pulled to an instance; empty when one can."""
    if not instance.probe:
        return "it is static ('probe: false'), nothing but users' requests is sent to it"
    if _options(instance).models:
        return "its models are those that the configuration lists"
    return ""


def _with(model: str, instances: Iterable[ResourceInstance]) -> tuple[ResourceInstance, ...]:
    return tuple(instance for instance in instances if capability(model) in instance.capabilities)


def _ignore(_: PullProgress) -> None:
    """For callers who want no progress."""
