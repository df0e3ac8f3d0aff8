"""The hub of containers: makes them on one or several engines, watches them, and leaves none behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final

from gleitzeit_core.background import Background
from gleitzeit_core.errors import ConfigurationError, FailureKind, InstanceFailure, Problem
from gleitzeit_core.probes import HttpProbe
from gleitzeit_core.resources import HttpChannel, Ownership, ResourceInstance, instance_id
from gleitzeit_core.routing import Offer, OfferKind
from gleitzeit_core.supply import SupplyHub, SupplyOptions
from gleitzeit_docker.containers import Container, NotYet, agent_options, config, container_name, published_port
from gleitzeit_docker.engine import Engine
from gleitzeit_docker.errors import DockerError, EngineDown, ImageMissing, NotFound, RuntimeMissing
from gleitzeit_docker.images import Images
from gleitzeit_docker.options import RUNNER, DockerOptions
from gleitzeit_docker.owners import Owner
from gleitzeit_docker.watching import Watch
from gleitzeit_python.runner import start

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gleitzeit_core.requests import Outcome
    from gleitzeit_core.resources import Channel, Requirements

logger = logging.getLogger(__name__)

_ASK_EVERY_S: Final = 0.1
_PROBE_S: Final = 5.0
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
        self.images = Images(
            self.profile.image, stall_timeout_s=self.options.pull_stall_timeout_s, arrived=self._image_arrived
        )
        self._owner: Owner | None = None
        self._config: Mapping[str, Any] = {}
        self._watches: dict[str, Watch] = {}
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
        try:
            owner = self._owner = await asyncio.to_thread(Owner.begin)
        except OSError as error:
            raise ConfigurationError([Problem(f"hubs.{self.name}", f"no lock can be held: {error}")]) from None
        self._config = await asyncio.to_thread(config, self.options, owner.labels, hub=self.name)
        for name, address in self.options.engines_used():
            options = self.options
            engine = Engine(address, name=name, timeout_s=options.call_timeout_s, threads=options.threads)
            self._watches[name] = Watch(engine, owner, self)
        await asyncio.gather(*map(self._meet, self._watches.values()))
        for watch in self._watches.values():
            watch.begin()
        await super().open()

    async def _meet(self, watch: Watch) -> None:
        try:
            await watch.meet()
        except RuntimeMissing as error:
            raise ConfigurationError([Problem(f"hubs.{self.name}.runtime", error.message)]) from None
        except DockerError as error:
            logger.warning("hub %s: engine %s: %s; it is tried again", self.name, watch.engine.name, error.message)
        if self.options.pull == "always" and not watch.problem:
            self.images.pull(watch.engine)

    async def discover(self) -> Iterable[ResourceInstance]:
        """Nothing is found: it is the time to compare all containers, to sweep, and to look for what was missing."""
        for watch in self._watches.values():
            if not watch.problem:
                with contextlib.suppress(DockerError):
                    await watch.resync()
                    if self.images.on(watch.engine) is None:
                        await self._look_for_image(watch.engine)
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
            await self._probe(instance)
        return instance

    async def close(self) -> None:
        """Remove all that is ours, and let go of the engines."""
        try:
            for watch in self._watches.values():
                await watch.aclose()
            await self.images.aclose()
            await super().close()
            await self._removals.settle(self.options.call_timeout_s)
        finally:
            await self._let_go()

    async def _let_go(self) -> None:
        watches, self._watches = self._watches, {}
        for watch in watches.values():
            await watch.engine.aclose()
        owner, self._owner = self._owner, None
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
        down = [watch.problem for watch in self._watches.values() if watch.problem]
        return self._why_none() or "; ".join(filter(None, [self._failed, *down]))

    @problem.setter
    def problem(self, why: str) -> None:
        self._failed = why

    def _why_none(self) -> str:
        """Why no container can be made on any engine; empty when one can."""
        if not self._watches or self._usable():
            return ""
        whys = (watch.problem or self.images.why_missing(watch.engine) for watch in self._watches.values())
        return "; ".join(dict.fromkeys(whys))

    def _usable(self) -> list[Engine]:
        engines = [watch.engine for watch in self._watches.values() if not watch.problem]
        return [engine for engine in engines if self.images.on(engine) is not None]

    def offer(self, requirements: Requirements) -> Offer:
        """Whether one more can be made; where no engine can, why."""
        why = self._why_none()
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
        engine = self._choose()
        container = self._containers[coming.id] = Container(coming.endpoint.removeprefix("docker://"), engine)
        try:
            channel, details = await self._made(container)
        except BaseException:
            await self._removed(coming.id)
            raise
        container.ready = True
        image = self.images.on(engine)
        details |= {"engine": engine.name, "container": container.id[:12], "digest": "" if image is None else image.id}
        return coming.changed(
            offers=((self.options.api, channel),), details={**coming.details, **details}, handle=container
        )

    async def destroy(self, instance: ResourceInstance) -> None:
        """Remove a container, whatever it does."""
        await self._removed(instance.id)

    async def reset(self, instance: ResourceInstance, outcome: Outcome) -> bool:  # noqa: ARG002 - as every hub
        """The runner has reset itself, and whoever used it has seen that it said so: else its channel is closed."""
        container: Container | None = instance.handle
        return container is None or container.stream is None or not container.stream.closed

    # -- one container -----------------------------------------------------------------------------------------

    def _choose(self) -> Engine:
        """The engine with the fewest containers of ours.

        Raises:
            ImageMissing: None has the image.
            EngineDown: None answers.
        """
        usable = self._usable()
        if not usable:
            there = any(not watch.problem for watch in self._watches.values())
            raise (ImageMissing if there else EngineDown)(self._why_none())
        counts = {engine.name: len(list(self.containers_on(engine))) for engine in usable}
        return min(usable, key=lambda engine: counts[engine.name])

    async def _made(self, container: Container) -> tuple[Channel, dict[str, Any]]:
        engine = container.engine
        try:
            container.id = await engine.create(container.name, self._config)
        except NotFound as error:
            await self._look_for_image(engine)
            raise ImageMissing(f"{error}; {self.images.why_missing(engine)}") from error
        if self.options.api != RUNNER:
            await engine.start(container.id)
            return await self._served(container), {}
        stream = container.stream = await engine.attach(container.id)
        await engine.start(container.id)
        try:
            hello = await start(stream, options=agent_options(self.options), timeout_s=self.options.create_timeout_s)
        except InstanceFailure as failure:
            said = f"{failure.message}; it said: {stream.log}" if stream.log else failure.message
            raise InstanceFailure(failure.kind, said, started=False) from failure
        return stream, {"runner": hello.as_dict()}

    async def _served(self, container: Container) -> HttpChannel:
        """Wait until a server answers.

        Raises:
            InstanceFailure: It ends before that.
        """
        port = self.options.port or 0
        try:
            published = published_port(await container.engine.inspect(container.id), port)
        except (LookupError, NotFound):
            # As a rule because it has ended, and is told of in a moment.
            await asyncio.wait((container.ended,), timeout=_PROBE_S)
            why = container.ended.result() if container.ended.done() else f"port {port} is not published"
            raise InstanceFailure(FailureKind.REFUSED, why, started=False) from None
        channel = HttpChannel(f"http://{container.engine.address.published_at}:{published}")
        probed = self.next(0).changed(offers=((self.options.api, channel),))
        while True:
            try:
                await self._probe(probed)
            except InstanceFailure as failure:
                logger.debug("%s: %s does not answer yet: %s", self.name, container.name, failure)
            else:
                return channel
            await asyncio.wait((container.ended,), timeout=_ASK_EVERY_S)
            if container.ended.done():
                raise InstanceFailure(FailureKind.REFUSED, container.ended.result(), started=False)

    async def _probe(self, instance: ResourceInstance) -> None:
        try:
            async with asyncio.timeout(_PROBE_S):
                await HttpProbe(type="http", path=self.options.health_path).examine(instance)
        except TimeoutError:
            raise InstanceFailure(FailureKind.TIMEOUT, f"{self.options.health_path} is not answered") from None

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

    async def met(self, engine: Engine) -> None:
        """An engine answers: see whether it has the runtime and the image.

        Raises:
            RuntimeMissing: It lacks the runtime.
        """
        runtime = self.profile.runtime
        if runtime:
            known = (await engine.call(lambda client: client.info())).get("Runtimes") or {}
            if runtime not in known:
                have = ", ".join(sorted(known))
                raise RuntimeMissing(f"engine {engine.name} has no runtime {runtime!r}; it has: {have}")
        await self._look_for_image(engine)

    def gone(self, engine: Engine) -> None:
        """An engine answers no more; what has lost its streams is lost."""
        for container in self.containers_on(engine):
            if container.ready and container.stream is not None and container.stream.closed:
                self.lost(container, f"engine {engine.name} is gone")

    async def _look_for_image(self, engine: Engine) -> None:
        if await self.images.look(engine) is not None:
            self._retry_now()
        elif self.options.pull != "never":
            self.images.pull(engine)

    def _image_arrived(self, engine: Engine) -> None:
        logger.info("%s: %s is there on %s", self.name, self.images.name, engine.name)
        self._retry_now()

    def _retry_now(self) -> None:
        """What was in the way may be gone: do not wait for the end of a pause."""
        if self._retry is not None:
            self._retry.cancel()
            self._may_retry()
        elif self.running:
            self.resupply()


def _models(options: DockerOptions) -> dict[str, Any]:
    """What instances say of their models, as those who drive them by `llm` have it."""
    entries = {model.removesuffix(":latest"): {"name": model, "model": model} for model in options.models}
    return {"models": entries} if entries else {}
