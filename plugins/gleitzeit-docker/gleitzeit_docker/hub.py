"""The hub of containers: makes them on one or several engines, watches them, and leaves none behind."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from gleitzeit_core.background import Background
from gleitzeit_core.errors import ClosedError, ConfigurationError, FailureKind, InstanceFailure, Problem
from gleitzeit_core.resources import HttpChannel, Ownership, ResourceInstance, instance_id
from gleitzeit_core.routing import Offer, OfferKind
from gleitzeit_core.supply import SupplyHub, SupplyOptions
from gleitzeit_docker.containers import Container, NotYet, config, container_name
from gleitzeit_docker.engine import to_its_end
from gleitzeit_docker.errors import DockerError, EngineDown, ImageMissing, NotFound, RuntimeMissing
from gleitzeit_docker.fleet import Fleet
from gleitzeit_docker.options import RUNNER, DockerOptions
from gleitzeit_docker.owners import Owner
from gleitzeit_docker.starting import probe, started

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gleitzeit_core.requests import Outcome
    from gleitzeit_core.resources import Channel, Requirements
    from gleitzeit_docker.engine import Engine

logger = logging.getLogger(__name__)

_NOWHERE: Final = HttpChannel("http://starting.invalid")
_NOT_YET: Final = NotYet()


class DockerHub(SupplyHub[DockerOptions]):
    """Containers, each an instance.

    Args:
        options: Checked already; None for the defaults: sandboxed Python runners on this machine's engine.
        name: As in the configuration.
    """

    kind = "docker"

    def __init__(self, options: DockerOptions | None = None, *, name: str = "") -> None:
        super().__init__(options or DockerOptions(), name=name)
        self.profile = self.options.profile_used()
        self._owner: Owner | None = None
        self._fleet: Fleet | None = None
        # What each engine is told when a container is made.
        self._configs: dict[str, Mapping[str, Any]] = {}
        # By the id of their instances; from before they are made until they are gone.
        self._containers: dict[str, Container] = {}
        self._removals = Background()
        self._failed = ""

    # -- as every hub ------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Become an owner, connect to the engines, sweep up what dead owners left, and make what is to be kept.

        An engine that does not answer is tried again; an image that is missing is pulled in the background.

        Raises:
            ConfigurationError: An engine lacks the runtime that is asked for, or no lock can be held here.
        """
        owner = await self._begin_owner()
        for name, address in self.options.engines_used():
            told = await asyncio.to_thread(config, self.options, owner.labels, hub=self.name, here=address.is_local)
            self._configs[name] = told
        self._fleet = Fleet(self.options, owner, self, usable_again=self.retry_now)
        try:
            await self._fleet.open()
        except RuntimeMissing as error:
            raise ConfigurationError([Problem(f"hubs.{self.name}.runtime", error.message)]) from None
        await super().open()

    async def _begin_owner(self) -> Owner:
        beginning = asyncio.get_running_loop().run_in_executor(None, Owner.begin)
        try:
            self._owner = await to_its_end(beginning)
        except asyncio.CancelledError:
            # It holds its lock all the same, until `close`.
            self._owner = None if beginning.exception() else beginning.result()
            raise
        except OSError as error:
            raise ConfigurationError([Problem(f"hubs.{self.name}", f"no lock can be held: {error}")]) from None
        return self._owner

    @property
    def _engines(self) -> Fleet:
        if self._fleet is None:
            raise ClosedError(f"hub {self.name!r} is not started")
        return self._fleet

    async def discover(self) -> Iterable[ResourceInstance]:
        """Nothing is found: it is the time to compare all containers, to sweep, and to look for what was missing."""
        await self._engines.look()
        return ()

    async def check(self, instance: ResourceInstance) -> ResourceInstance:
        """See whether a container and its engine are well.

        Raises:
            InstanceFailure: They are not.
        """
        container: Container | None = instance.handle
        if container is None:
            return instance
        if container.stream is not None and container.stream.closed:
            self.lost(container, "the container's streams are closed")
            raise InstanceFailure(FailureKind.REFUSED, "the container's streams are closed")
        try:
            await container.engine.ping()
        except EngineDown as error:
            kind = FailureKind.TIMEOUT if error.hangs else FailureKind.REFUSED
            raise InstanceFailure(kind, error.message) from error
        if container.stream is None:
            await probe(instance, self.options.health_path)
        return instance

    async def close(self) -> None:
        """Remove all that is ours, and let go of the engines."""
        try:
            if self._fleet is not None:
                await self._fleet.stop()
            await super().close()
            # One asks whether the engine is there, kills, and waits for the end; each has a limit of its own.
            await self._removals.settle(3 * self.options.call_timeout_s)
        finally:
            await self._let_go()

    async def _let_go(self) -> None:
        fleet, self._fleet = self._fleet, None
        owner, self._owner = self._owner, None
        try:
            if fleet is not None:
                await fleet.aclose()
        finally:
            if owner is not None:
                await asyncio.to_thread(owner.close)

    # -- supply ------------------------------------------------------------------------------------------------

    @property
    def supply(self) -> SupplyOptions:
        """As configured; in a profile for single use, each use is the last."""
        return self.options.model_copy(update={"max_uses": 1}) if self.profile.single_use else self.options

    @property
    def tenant_bound(self) -> bool:  # type: ignore[override]  # it depends on the options here
        """What runs code is never given to another tenant; what answers requests may be."""
        return self.options.api == RUNNER

    @property
    def problem(self) -> str:
        """Why nothing can be made now, or why the last could not be; and which engines do not answer."""
        if self._fleet is None:
            return self._failed
        return self._fleet.why_none or "; ".join(filter(None, [self._failed, *self._fleet.problems]))

    @problem.setter
    def problem(self, why: str) -> None:
        self._failed = why

    def offer(self, requirements: Requirements) -> Offer:
        """Whether one more can be made; where no engine can, why."""
        why = "" if self._fleet is None else self._fleet.why_none
        if why and requirements.allow(self.next(0)):
            return Offer(OfferKind.NEVER, reason=why)
        return super().offer(requirements)

    def next(self, number: int) -> ResourceInstance:
        """One more container."""
        options = self.options
        name = container_name(self.name, "" if self._owner is None else self._owner.name, number)
        endpoint = f"docker://{name}"
        return ResourceInstance(
            id=instance_id(self.kind, endpoint),
            hub=self.name,
            kind=self.kind,
            endpoint=endpoint,
            offers=((options.api, _NOT_YET if options.api == RUNNER else _NOWHERE),),
            ownership=Ownership.MANAGED,
            capabilities=frozenset(f"model:{model.removesuffix(':latest')}" for model in options.models),
            tags=frozenset(options.tags),
            weight=options.weight,
            max_concurrent=options.max_concurrent,
            details={
                "profile": options.profile,
                "image": self.profile.image,
                "trusted": options.base_used() == "trusted",
                **_models(options),
            },
        )

    async def create(self, coming: ResourceInstance) -> ResourceInstance:
        """Make and start a container, and wait until what is in it answers.

        Raises:
            ImageMissing: No engine has the image yet.
            DockerError: An engine refuses.
            InstanceFailure: What is in it does not answer.
        """
        engine = self._engines.choose(container.engine for container in self._containers.values())
        container = self._containers[coming.id] = Container(coming.endpoint.removeprefix("docker://"), engine)
        try:
            channel, details = await self._made(container, coming)
        except BaseException as error:
            if isinstance(error, Exception):
                self._engines.failed(engine)
            await self._removed(coming.id)
            raise
        container.ready = True
        image = self._engines.images.on(engine)
        place = {"engine": engine.name, "container": container.id[:12], "digest": "" if image is None else image.id}
        return coming.changed(
            offers=((self.options.api, channel),), details={**coming.details, **details, **place}, handle=container
        )

    async def destroy(self, instance: ResourceInstance) -> None:
        """Remove a container, whatever it does."""
        await self._removed(instance.id)

    async def reset(self, instance: ResourceInstance, outcome: Outcome) -> bool:  # noqa: ARG002 - as every hub
        """The runner has reset itself, and whoever used it has seen that it said so: else its channel is closed."""
        container: Container | None = instance.handle
        return container is None or container.stream is None or not container.stream.closed

    # -- one container -----------------------------------------------------------------------------------------

    async def _made(self, container: Container, coming: ResourceInstance) -> tuple[Channel, Mapping[str, Any]]:
        engine = container.engine
        try:
            container.id = await engine.create(container.name, self._configs[engine.name])
        except NotFound as error:
            await self._engines.look_for_image(engine)
            raise ImageMissing(f"{error}; {self._engines.images.why_missing(engine)}") from error
        return await started(container, coming, self.options)

    async def _removed(self, instance_id: str) -> None:
        """Remove a container to the end, even when whoever waits for it is cancelled."""
        container = self._containers.get(instance_id)
        if container is not None:
            container.leaving = True
            await asyncio.shield(self._removals.spawn(self._remove(instance_id, container), lasting=True))

    async def _remove(self, instance_id: str, container: Container) -> None:
        if container.stream is not None:
            await container.stream.aclose()
        try:
            await container.engine.remove(container.name)
        except DockerError as error:
            # Not forgotten for good: when the engine answers again, what is there and not known is removed.
            logger.warning("%s: %s could not be removed: %s", self.name, container.name, error.message)
        finally:
            self._containers.pop(instance_id, None)

    # -- for the watches ---------------------------------------------------------------------------------------

    def containers_on(self, engine: Engine) -> Iterable[Container]:
        """All of ours on an engine, those that are being made included."""
        return [container for container in self._containers.values() if container.engine is engine]

    def knows(self, name: str) -> bool:
        """Whether a container of this name is ours, on whatever engine."""
        return any(container.name == name for container in self._containers.values())

    def lost(self, container: Container, reason: str) -> None:
        """One has ended, and not by us: another comes for it."""
        if not container.ended.done():
            container.ended.set_result(reason)
        for instance in tuple(self._owned.values()):
            if instance.handle is container:
                logger.warning("%s: %s: %s", self.name, container.name, reason)
                self.replace(instance, reason)

    def gone(self, engine: Engine) -> None:
        """An engine answers no more; what has lost its streams is lost."""
        for container in self.containers_on(engine):
            if container.ready and container.stream is not None and container.stream.closed:
                self.lost(container, f"engine {engine.name} is gone")


def _models(options: DockerOptions) -> dict[str, Any]:
    """What instances say of their models, as those who drive them by `llm` have it."""
    entries = {model.removesuffix(":latest"): {"name": model, "model": model} for model in options.models}
    return {"models": entries} if entries else {}
