"""The part of the Ollama hub that keeps servers: those that are configured, and those that are started here."""

from __future__ import annotations

import asyncio
import logging
import shutil
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from gleitzeit_core.errors import ConfigurationError, FailureKind, InstanceFailure, Problem
from gleitzeit_core.resources import HttpChannel, Ownership, ResourceInstance, instance_id
from gleitzeit_core.supply import NO_SUPPLY, SupplyHub, SupplyOptions
from gleitzeit_llm.models import canonical, capability, entry
from gleitzeit_llm.server_hub import ServerHub, channel_of
from gleitzeit_llm.upstream import Upstream
from gleitzeit_ollama.addresses import host_and_port
from gleitzeit_ollama.asking import describe, offers
from gleitzeit_ollama.options import InstanceOptions, ManagedOptions, OllamaOptions
from gleitzeit_ollama.processes import LOOPBACK, Server, ServerError, Servers

if TYPE_CHECKING:
    import ssl

logger = logging.getLogger(__name__)

_ASK_EVERY_S: Final = 0.05
# What can change while servers run; the rest says how they are started.
_ADAPTABLE: Final = frozenset(
    {*SupplyOptions.model_fields, "stop_timeout_s", "weight", "max_concurrent", "tags", "models"}
)


class KeepingHub(ServerHub[OllamaOptions], SupplyHub[OllamaOptions]):
    """Base of the Ollama hub. See the module's text."""

    kind = "ollama"
    server_options = InstanceOptions
    adaptable = ServerHub.adaptable | {"managed"}

    def __init__(self, options: OllamaOptions, *, name: str = "") -> None:
        super().__init__(options, name=name)
        self._upstream = Upstream(connect_timeout_s=options.connect_timeout_s)
        self._servers_here: Servers | None = None
        # By the instance's id; what the last that was asked can do, so can the next.
        self._running_here: dict[str, Server] = {}
        self._found_here: frozenset[str] = frozenset()

    # -- as every hub ------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the HTTP client, take over what an earlier process of ours has left behind, start what is to be kept.

        Raises:
            ConfigurationError: A file of certificates or the directory for logs cannot be used, or there is no such
                command.
        """
        await self.open_servers()
        await self._upstream.open()
        managed = self.options.managed
        if managed is not None:
            await self._open_servers_here(managed)
            if not managed.models and not self._owned:
                # Somebody has to say what they have.
                self._begin(1)
        await super().open()

    async def close(self) -> None:
        """End the servers that are ours and close the HTTP client."""
        try:
            await super().close()
        finally:
            await self._upstream.close()

    def described(self, server: InstanceOptions, tls: ssl.SSLContext | None) -> ResourceInstance:
        """The instance that a server's options describe."""
        channel = HttpChannel(server.url, headers=server.sent_headers(), tls=tls)
        models = {canonical(name): entry(name) for name in server.models}
        return ResourceInstance(
            id=instance_id(self.kind, server.url),
            hub=self.name,
            kind=self.kind,
            endpoint=server.url,
            offers=offers(channel),
            capabilities=frozenset(map(capability, models)),
            tags=frozenset(server.tags),
            weight=server.weight,
            max_concurrent=server.max_concurrent,
            cancellable=server.cancellable,
            probe=server.probe,
            details={"models": models, "name": server.name},
            handle=server,
        )

    async def check(self, instance: ResourceInstance) -> ResourceInstance:
        """Ask a server for its version, its models and those in memory. One of our own that is gone is replaced.

        Raises:
            InstanceFailure: It is not well, or is no Ollama server.
        """
        fixed = instance.handle.has_models
        try:
            found = await describe(self._upstream, channel_of(instance), list_models=not fixed)
        except InstanceFailure as failure:
            if failure.kind is FailureKind.REFUSED:
                self.replace(instance, failure.message)
            raise
        models = instance.details["models"] if found.models is None else found.models
        capabilities = frozenset(map(capability, models))
        if instance.ownership is not Ownership.EXTERNAL:
            self._found_here = capabilities
        return replace(
            instance,
            offers=offers(channel_of(instance), found.version),
            capabilities=capabilities,
            warm=capabilities & frozenset(map(capability, found.loaded)),
            details={**instance.details, "models": models, "version": found.version},
        )

    async def reconfigure(self, options: OllamaOptions) -> bool:
        """Take other options. What says how servers are started cannot change, only how many and what they count."""
        before = self.options.managed
        if not _adapts(before, options.managed) or not await super().reconfigure(options):
            return False
        if options.managed is not None and options.managed != before:
            for instance in [self._known[name] for name in self._owned if name in self._known]:
                self.publish(instance.changed(**_capacity(options.managed)))
            self.resupply()
        return True

    # -- servers of our own ------------------------------------------------------------------------------------

    @property
    def supply(self) -> SupplyOptions:
        """As configured."""
        return NO_SUPPLY if self.options.managed is None else self.options.managed

    def next(self, number: int) -> ResourceInstance:
        """One more server, at a port that is free, with the models that the others have."""
        managed = self.options.managed
        port = 0
        if number and self._servers_here is not None:
            ours = (*self._owned.values(), *(self._known[name] for name in self._creations if name in self._known))
            port = self._servers_here.port(number, {host_and_port(instance.endpoint)[1] for instance in ours})
        coming = self._here(port)
        models = frozenset(map(capability, () if managed is None else managed.models))
        return coming.changed(capabilities=self._found_here or models)

    def _here(self, port: int) -> ResourceInstance:
        """A server of our own, by its port."""
        # Not validated: it is asked for often, and port 0 stands for one that is not known yet.
        server = InstanceOptions.model_construct(url=f"http://{LOOPBACK}:{port}")
        managed = self.options.managed
        instance = self.described(server, None).changed(ownership=Ownership.MANAGED)
        return instance if managed is None else instance.changed(**_capacity(managed))

    async def create(self, coming: ResourceInstance) -> ResourceInstance:
        """Start a server and wait until it answers.

        Raises:
            ServerError: It ends before that.
            OSError: The command cannot be run.
        """
        if self._servers_here is None:
            raise ServerError("nothing says how to start one")
        server = await self._servers_here.start(host_and_port(coming.endpoint)[1])
        try:
            answering = await self._answering(server, coming)
        except BaseException:
            await server.stop(0)
            raise
        return self._watched(server, answering)

    async def _answering(self, server: Server, instance: ResourceInstance) -> ResourceInstance:
        while not server.ended.done():
            try:
                answering = await self.check(instance)
            except InstanceFailure as failure:
                logger.debug("%s: %s does not answer yet: %s", self.name, instance.endpoint, failure)
                await asyncio.wait((server.ended,), timeout=_ASK_EVERY_S)
            else:
                # What answers is another's when ours has not got the port.
                if not server.ended.done():
                    return answering
        raise ServerError(await server.why())

    def _watched(self, server: Server, instance: ResourceInstance) -> ResourceInstance:
        self._running_here[instance.id] = server
        server.ended.add_done_callback(partial(self._ended, instance.id, server))
        details = {**instance.details, "pid": server.pid, "log": str(server.log)}
        return instance.changed(details=details)

    def _ended(self, instance_id: str, server: Server, ended: asyncio.Task[str]) -> None:
        if not server.stopping and instance_id in self._owned:
            reason = f"process {server.pid} {ended.result()} ({server.log})"
            logger.warning("%s: %s: %s", self.name, self._owned[instance_id].endpoint, reason)
            self.replace(self._owned[instance_id], reason)

    async def destroy(self, instance: ResourceInstance) -> None:
        """End a server of our own with everything it has started."""
        server, managed = self._running_here.get(instance.id), self.options.managed
        if server is not None:
            await server.stop(0 if managed is None else managed.stop_timeout_s)
            del self._running_here[instance.id]

    async def _open_servers_here(self, managed: ManagedOptions) -> None:
        path = f"hubs.{self.name}.managed"
        if await asyncio.to_thread(shutil.which, managed.command[0]) is None:
            problem = Problem(f"{path}.command", f"there is no command {managed.command[0]!r}")
            raise ConfigurationError([problem])
        self._servers_here = Servers(managed, self.name)
        try:
            await self._servers_here.open()
            left_over = await self._servers_here.left_over()
        except OSError as error:
            raise ConfigurationError([Problem(f"{path}.log_dir", f"cannot be used: {error}")]) from None
        await asyncio.gather(*(self._take_over(server, wanted=wanted) for server, wanted in left_over))

    async def _take_over(self, server: Server, *, wanted: bool) -> None:
        """Own a server that is left over, or end it when it is not what would be started now, or does not answer."""
        instance = self._here(server.port).changed(ownership=Ownership.ADOPTED)
        try:
            async with asyncio.timeout(self.options.check_timeout_s):
                answering = await self.check(instance) if wanted else None
        except (InstanceFailure, TimeoutError):
            answering = None
        except BaseException:
            await server.stop(0)
            raise
        if answering is None or len(self._owned) >= self.supply.max_total:
            logger.info("hub %s: ending %r, which an earlier process has left behind", self.name, server)
            await server.stop(0 if self.options.managed is None else self.options.managed.stop_timeout_s)
            return
        logger.info("hub %s: taking over %r, which an earlier process has left behind", self.name, server)
        self.adopt(self._watched(server, answering))


def _capacity(managed: ManagedOptions) -> dict[str, object]:
    """What the options say of each instance."""
    tags = frozenset(managed.tags)
    return {"weight": managed.weight, "max_concurrent": managed.max_concurrent, "tags": tags}


def _adapts(before: ManagedOptions | None, after: ManagedOptions | None) -> bool:
    """Whether servers that run under `before` may go on under `after`."""
    if before is None or after is None:
        return before is after
    return all(getattr(before, n) == getattr(after, n) for n in ManagedOptions.model_fields if n not in _ADAPTABLE)
