"""The hub of Ollama servers: those that the configuration names, and those that it finds on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from dataclasses import replace
from typing import TYPE_CHECKING

from gleitzeit_core.errors import (
    ConfigurationError,
    FailureKind,
    InstanceFailure,
    InvalidRequest,
    NoCapableInstance,
    Problem,
    Unavailable,
    UnknownName,
)
from gleitzeit_core.hub import ResourceHub
from gleitzeit_core.resources import HttpChannel, ResourceInstance, instance_id
from gleitzeit_llm.models import canonical, capability, entry
from gleitzeit_llm.upstream import Upstream
from gleitzeit_ollama.addresses import normalised, without_aliases
from gleitzeit_ollama.asking import describe
from gleitzeit_ollama.discovery import Discovery
from gleitzeit_ollama.downloads import PullProgress, Tell, download
from gleitzeit_ollama.options import InstanceOptions, OllamaOptions, TlsOptions
from gleitzeit_ollama.pulls import Feed, Pulls, choose

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Sequence

logger = logging.getLogger(__name__)


class OllamaHub(ResourceHub[OllamaOptions]):
    """Ollama servers, which are never started or stopped from here.

    Args:
        options: None to discover what there is on this machine.
        name: As in the configuration; ``ollama`` when empty.

    Attributes:
        pulls: The downloads under way.
    """

    kind = "ollama"

    def __init__(self, options: OllamaOptions | None = None, *, name: str = "") -> None:
        super().__init__(OllamaOptions() if options is None else options, name=name)
        self._upstream = Upstream(connect_timeout_s=self.options.connect_timeout_s)
        self.pulls = Pulls(self._download)
        self._configured: tuple[ResourceInstance, ...] = ()
        self._discovery: Discovery | None = None

    # -- as every hub ------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the HTTP client.

        Raises:
            ConfigurationError: A file of certificates cannot be read.
        """
        contexts = await asyncio.to_thread(self._tls_contexts)
        self._configured = tuple(map(self._instance, self.options.instances, contexts))
        if self.options.discover:
            ports, timeout_s = self.options.discover_ports, self.options.check_timeout_s
            self._discovery = Discovery(ports, self._look, resolve_timeout_s=timeout_s)
        await self._upstream.open()

    async def discover(self) -> Iterable[ResourceInstance]:
        """The configured instances; servers that were found are published here, since they have just answered."""
        if self._discovery is not None:
            known = [instance.endpoint for instance in (*self._configured, *self.instances)]
            for found in await self._discovery.search(known):
                logger.info("hub %s: found an Ollama server at %s", self.name, found.endpoint)
                self.publish(found)
        return self._configured

    async def check(self, instance: ResourceInstance) -> ResourceInstance:
        """Ask a server for its version, its models and those in memory.

        Raises:
            InstanceFailure: It is not well, or is no Ollama server.
        """
        fixed = _options(instance).models
        found = await describe(self._upstream, _channel(instance), list_models=not fixed)
        models = instance.details["models"] if found.models is None else found.models
        capabilities = frozenset(map(capability, models))
        return replace(
            instance,
            capabilities=capabilities,
            warm=capabilities & frozenset(map(capability, found.loaded)),
            details={**instance.details, "models": models, "version": found.version},
        )

    async def close(self) -> None:
        """End the pulls under way and close the HTTP client."""
        try:
            await self.pulls.aclose()
        finally:
            await self._upstream.close()

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
            named = await self._all_refreshed(self._named(instances))
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
        targets = self._named(instances) if instances is not None else self._choice(model, await self.survey())
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
        asked = [instance for instance in self.instances if not _why_not(instance)]
        if not asked:
            raise NoCapableInstance(f"hub {self.name!r} {self._why_none()}")
        results = await asyncio.gather(*map(self._refreshed, asked), return_exceptions=True)
        answering = tuple(result for result in results if isinstance(result, ResourceInstance))
        if not answering:
            reasons = "; ".join(str(result) for result in results)
            raise Unavailable(f"no instance of hub {self.name!r} answers: {reasons}", instances=[i.id for i in asked])
        return answering

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
        raise UnknownName("instance", given, [instance.id for instance in self.instances])

    # -- inside ------------------------------------------------------------------------------------------------

    def _instance(self, options: InstanceOptions, tls: ssl.SSLContext | None = None) -> ResourceInstance:
        channel = HttpChannel(options.url, headers=options.sent_headers(), tls=tls)
        models = {canonical(name): entry(name) for name in options.models}
        return ResourceInstance(
            id=instance_id(self.kind, options.url),
            hub=self.name,
            kind=self.kind,
            endpoint=options.url,
            offers=(("ollama", channel), ("openai", channel)),
            capabilities=frozenset(map(capability, models)),
            tags=frozenset(options.tags),
            weight=options.weight,
            max_concurrent=options.max_concurrent,
            probe=options.probe,
            details={"models": models, "name": options.name},
            handle=options,
        )

    def _tls_contexts(self) -> list[ssl.SSLContext | None]:
        """One for each configured instance. Reads files."""
        contexts = []
        for number, options in enumerate(self.options.instances):
            try:
                contexts.append(_tls_context(options.tls))
            except OSError as error:  # an SSLError is one
                path = f"hubs.{self.name}.instances[{number}].tls.ca"
                raise ConfigurationError([Problem(path, f"cannot be used: {error}")]) from None
        return contexts

    async def _look(self, url: str) -> ResourceInstance | None:
        """The instance at a URL, when an Ollama server answers there."""
        # Not validated: OLLAMA_HOST may have a path, options must not.
        options = InstanceOptions(url="localhost").model_copy(update={"url": url})
        try:
            async with asyncio.timeout(self.options.check_timeout_s):
                return await self.check(self._instance(options))
        except (InstanceFailure, TimeoutError) as error:
            logger.debug("hub %s: nothing to pool at %s: %s", self.name, url, error)
            return None

    async def _refreshed(self, instance: ResourceInstance) -> ResourceInstance:
        """An instance as it is now, made known to all."""
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

    async def _all_refreshed(self, instances: Iterable[ResourceInstance]) -> list[ResourceInstance]:
        """All of them as they are now; the first failure, when all have answered."""
        results = await asyncio.gather(*map(self._refreshed, instances), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return [result for result in results if isinstance(result, ResourceInstance)]

    def _why_none(self) -> str:
        if self.instances:
            return "has no instance that a model can be pulled to"
        ports = ", ".join(map(str, self.options.discover_ports))
        return f"has found no Ollama server, neither at OLLAMA_HOST nor on loopback ports {ports}"

    def _named(self, given: Iterable[str]) -> tuple[ResourceInstance, ...]:
        found = {instance.id: instance for instance in map(self.find, given)}
        for instance in found.values():
            why_not = _why_not(instance)
            if why_not:
                raise InvalidRequest(f"no model can be pulled to {instance.endpoint}: {why_not}")
        return tuple(found.values())

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

    async def _download(self, instance: ResourceInstance, model: str, tell: Tell) -> None:
        success = await download(
            self._upstream,
            instance,
            _channel(instance),
            model,
            tell=tell,
            stall_s=self.options.pull_stall_timeout_s,
        )
        # Whoever hears of the success may ask for the model at once, so it must be known by then. If the server does
        # not answer now, its health checks will say so.
        with contextlib.suppress(InstanceFailure):
            await self._refreshed(instance)
        tell(success)


def _options(instance: ResourceInstance) -> InstanceOptions:
    options: InstanceOptions = instance.handle
    return options


def _channel(instance: ResourceInstance) -> HttpChannel:
    return next(channel for _, channel in instance.offers if isinstance(channel, HttpChannel))


def _tls_context(tls: TlsOptions) -> ssl.SSLContext | None:
    if tls == TlsOptions():
        return None
    context = ssl.create_default_context(cafile=tls.ca)
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


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
