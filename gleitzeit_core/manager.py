"""Everything together, by name and from configuration: hubs, providers, routes, store and plugins."""

from __future__ import annotations

import asyncio
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from gleitzeit_core.assembly import hub_over, make_routes, open_hubs, open_provider
from gleitzeit_core.batch import Batch
from gleitzeit_core.clock import SystemClock
from gleitzeit_core.config import check_configuration, find_configuration, read_configuration
from gleitzeit_core.dispatch import Dispatcher
from gleitzeit_core.errors import ClosedError, InvalidRequest, UnknownMethod, UnknownName
from gleitzeit_core.events import Events
from gleitzeit_core.instance_log import InstanceLog
from gleitzeit_core.needs import positive, requirements_of
from gleitzeit_core.plugins import PluginHost
from gleitzeit_core.reload import Reloader, prepare, reload
from gleitzeit_core.routing import Share
from gleitzeit_core.status import instance_status, queues_of, status_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Collection, Iterable, Mapping
    from pathlib import Path
    from typing import Unpack

    from gleitzeit_core.clock import Clock
    from gleitzeit_core.config import Configuration
    from gleitzeit_core.events import EventStream
    from gleitzeit_core.hub import ResourceHub
    from gleitzeit_core.leases import LeaseRequest
    from gleitzeit_core.persistence import HubPersistenceAdapter
    from gleitzeit_core.provider import Provider, RequestOptions
    from gleitzeit_core.reload import Changes
    from gleitzeit_core.reservations import Reservation
    from gleitzeit_core.resources import Requirements, ResourceInstance
    from gleitzeit_core.routing import Route
    from gleitzeit_core.runs import InstanceReport, OnInstance, Stream


class ResourceManager:
    """Runs a configuration, checked already, with the plugins it was checked against.

    Args:
        config: What to run. The attribute of this name says what is in force: `reload` changes it.
        host: The plugins.
        clock: Time; None for the system's.

    For example::

        async with ResourceManager.from_config() as manager:
            answer = await manager.execute("llm/chat", {"model": "smollm2", "messages": [...]})
    """

    def __init__(self, config: Configuration, host: PluginHost, *, clock: Clock | None = None) -> None:
        self.config, self.host = config, host
        self.reloaders: dict[str, Reloader] = {}
        self.providers: dict[str, Provider[Any]] = {}
        self.store: HubPersistenceAdapter | None = None
        self.started_at = time.time()
        self._dispatcher: Dispatcher | None = None
        self._clock = clock or SystemClock()
        self._events = Events(host, self._clock.wall)
        self._instance_log: InstanceLog | None = None
        self._reading, self._changing = asyncio.Lock(), asyncio.Lock()

    def __repr__(self) -> str:
        return f"<ResourceManager {', '.join(self.providers) or 'closed'}, {self._dispatcher!r}>"

    @classmethod
    def from_config(cls, path: Path | None = None, *, overrides: Mapping[str, Any] | None = None) -> ResourceManager:
        """A manager for a configuration file.

        Args:
            path: The file; None to look for it at the usual places, and to do without when there is none.
            overrides: Values that go before the file's, in the same shape.

        Raises:
            ConfigurationError: It is wrong; lists everything that is.
            PluginError: A plugin that it names is broken.
        """
        raw = read_configuration(find_configuration(path, os.environ), overrides=overrides or {})
        host = PluginHost.load(disabled=raw.plugins.disabled, files=raw.plugins.files)
        return cls(check_configuration(raw, host), host)

    async def __aenter__(self) -> Self:
        """Start the store, the providers and the hubs; `GleitzeitError` if a hub that is configured cannot start."""
        if self._dispatcher is not None:
            raise ClosedError("this manager is started already")
        routes = await make_routes(self.host, self.config.routes)
        self._dispatcher = Dispatcher(routes, observers=self._events, clock=self._clock)
        try:
            await self._open_store()
            for name in self.config.providers:
                self.providers[name] = await open_provider(self, name)
            await open_hubs(self)
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Stop everything, at once."""
        await self.aclose()

    async def aclose(self, *, grace_s: float = 0.0) -> None:
        """Take nothing new, let what runs finish for `grace_s` seconds, stop everything. More than once is fine."""
        dispatcher, self._dispatcher = self._dispatcher, None
        if dispatcher is None:
            return
        try:
            await dispatcher.aclose(grace_s=grace_s)
        finally:
            self._events.end()
            providers, self.providers = self.providers, {}
            await asyncio.gather(*(provider.close() for provider in providers.values()), return_exceptions=True)
            await self._close_store()

    async def _close_store(self) -> None:
        """Once the last changes are written."""
        try:
            if self._instance_log is not None:
                await self._instance_log.aclose()
        finally:
            if self.store is not None:
                await self.store.close()

    async def _open_store(self) -> None:
        kind = await asyncio.to_thread(self.host.load_target, self.config.store.type)
        self.store = kind(self.config.store.options, clock=self.dispatcher.clock)
        await self.store.open()
        if self.store.instances is not None:
            self._instance_log = InstanceLog(self.store.instances)
            self.dispatcher.shell.listen(self._instance_log.note)

    @property
    def dispatcher(self) -> Dispatcher:
        """What carries requests out; `ClosedError` if the manager is not started."""
        if self._dispatcher is None:
            raise ClosedError("this manager is not started: use it in an 'async with' block")
        return self._dispatcher

    # -- requests ----------------------------------------------------------------------------------------------

    def provider(self, method: str) -> Provider[Any]:
        """The provider that has `method`; `UnknownMethod` if none has, `ClosedError` if the manager is not started."""
        found = self.providers.get(method.partition("/")[0])
        if found is None:
            self.dispatcher  # noqa: B018 - a manager that is closed says so
            raise UnknownMethod(method, [one.name for it in self.providers.values() for one in it.methods])
        return found

    async def execute(
        self, method: str, params: Mapping[str, Any] | None = None, **options: Unpack[RequestOptions]
    ) -> Any:  # noqa: ANN401 - what a method answers is its own
        """Carry `method` out on one instance and return its answer; `RequestError` if it failed."""
        return await self.provider(method).execute(method, params, **options)

    def stream(self, method: str, params: Mapping[str, Any] | None = None, **options: Unpack[RequestOptions]) -> Stream:
        """Carry `method` out and iterate over its answer's parts; `RequestError`, here or there, if it failed."""
        return self.provider(method).stream(method, params, **options)

    async def each(
        self, method: str, params: Mapping[str, Any] | None = None, **options: Unpack[RequestOptions]
    ) -> list[OnInstance]:
        """Carry `method` out on every instance that can, and return an outcome for each."""
        return await self.provider(method).each(method, params, **options)

    def batch_execute(
        self,
        method: str,
        items: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
        *,
        concurrency: int = 8,
        key: Callable[[Mapping[str, Any]], str] | None = None,
        journal: Path | None = None,
        progress: Callable[[int, int, int | None], None] | None = None,
        **options: Unpack[RequestOptions],
    ) -> Batch:
        """Carry `method` out with each of `items` as parameters. Nothing happens before it is iterated or awaited.

        Args:
            method: Such as ``llm/embed``.
            items: Asked for one by one, as there is room.
            concurrency: Requests on their way at once, from 1.
            key: The name of an item in the journal; None for a digest of its parameters.
            journal: A file to go on from: what it says is done is not done again. One batch at a time may use it.
            progress: Called after each with how many there are, how many failed, how many there will be (or None).
            options: Of each request.

        Raises:
            UnknownMethod: No provider has `method`.
            InvalidRequest: `concurrency` is below 1.
        """
        provider = self.provider(method)
        provider.method(method)
        return Batch(
            partial(provider.execute, method, **options),
            items,
            method=method,
            clock=self._clock,
            concurrency=concurrency,
            key=key,
            journal=journal,
            progress=progress,
        )

    # -- holds -------------------------------------------------------------------------------------------------

    def allocate_resource(
        self,
        kind: str,
        requirements: Requirements | Mapping[str, Any] | None = None,
        *,
        ttl_s: float = 60.0,
        timeout_s: float = 30.0,
        tenant: str = "",
        priority: int = 0,
    ) -> LeaseRequest:
        """A lease of an instance, to be awaited or used in an ``async with`` block.

        Args:
            kind: A hub's kind or name.
            requirements: Of the instance; as plain data, ``model``, ``capabilities``, ``tags`` and ``instances``.
            ttl_s: How long it holds unless it is renewed, in seconds.
            timeout_s: How long to wait for an instance, in seconds.
            tenant: On whose behalf.
            priority: Higher goes first.

        Raises:
            UnknownName: There is no such hub.
            InvalidRequest: The requirements are wrong.
        """
        dispatcher = self.dispatcher
        known = {name for hub in dispatcher.shell.hubs.values() for name in (hub.kind, hub.name)}
        if kind not in known:
            raise UnknownName("kind of resource", kind, known)
        return dispatcher.lease(
            requirements_of(kind, requirements),
            ttl_s=ttl_s,
            timeout_s=timeout_s,
            tenant=tenant,
            priority=priority,
            store=None if self.store is None else self.store.leases,
        )

    def reserve(self, method_or_route: str, share: float, *, tenant: str = "", model: str = "") -> Reservation:
        """Keep a part of a route's capacity, until it is released.

        Args:
            method_or_route: A method, for the route that serves it; or a route's name.
            share: Of all slots that are up, above 0, at most 1.
            tenant: For whom; empty for anybody.
            model: For requests for this model; empty for any.

        Raises:
            UnknownMethod: There is neither such a route nor such a method.
            InvalidRequest: `share` is out of bounds, kept for nobody, or more than what is left.
        """
        dispatcher = self.dispatcher
        if positive("share", share) > 1 or not (tenant or model):
            raise InvalidRequest("a share is above 0 and at most 1, for a tenant or a model", param="share")
        name = method_or_route
        if name not in {route.name for route in self.config.routes}:
            name = dispatcher.route(self.provider(name).method(name).name).name
        try:
            return dispatcher.shell.admission.reserve(name, Share(share=share, tenant=tenant, model=model))
        except ValueError as error:
            raise InvalidRequest(str(error), param="share") from None

    # -- hubs and instances ------------------------------------------------------------------------------------

    async def add_hub(self, hub: ResourceHub[Any]) -> None:
        """Start a hub, and check its instances; `ValueError` if there is one of that name."""
        await self.dispatcher.shell.add_hub(hub)
        self._events.emit("hub", {"name": hub.name, "kind": hub.kind, "change": "added"})

    async def remove_hub(self, name: str, *, grace_s: float = 30.0) -> None:
        """Let a hub's instances finish what they have, then stop it; `KeyError` if there is none of that name."""
        shell = self.dispatcher.shell
        hub = shell.hubs[name]
        await shell.remove_hub(name, grace_s=grace_s)
        self._events.emit("hub", {"name": name, "kind": hub.kind, "change": "removed"})
        # What it had, another may know as well, such as itself under another name.
        others = [other for other in shell.hubs.values() if other.running]
        await asyncio.gather(*(other.search() for other in others), return_exceptions=True)

    async def add_instance(self, settings: Mapping[str, Any], hub: str = "") -> ResourceInstance:
        """Take an instance into the pool, and check it; it may be found down.

        Args:
            settings: As one of the ``instances`` of a hub. ``type`` is the hub's kind; not given, it is that of `hub`,
                or else ``ollama``.
            hub: The name of the hub that gets it; empty for the only one of that kind, or a new one.

        Raises:
            UnknownName: There is no such hub, or no such type.
            InvalidRequest: The settings are wrong, or several hubs could take it.
        """
        its, shell = dict(settings), self.dispatcher.shell
        kind = str(its.pop("type", None) or "")
        if hub:
            if kind and hub in shell.hubs and shell.hubs[hub].kind != kind:
                raise InvalidRequest(f"hub {hub!r} is of type {shell.hubs[hub].kind!r}, not {kind!r}", param="type")
            return await shell.add_instance(hub, its)
        kind = kind or "ollama"
        # Two at once must not make two hubs.
        async with self._changing:
            named = sorted(one.name for one in shell.hubs.values() if one.kind == kind)
            if not named:
                made = await hub_over(self.host, self.host.hub_type(kind), its, taken=shell.hubs)
                await self.add_hub(made)
                return made.instances[0]
        if len(named) > 1:
            raise InvalidRequest(f"several hubs are of type {kind!r}: name one of {', '.join(named)}", param="hub")
        return await shell.add_instance(named[0], its)

    def drain_instance(self, instance_id: str) -> None:
        """Let an instance finish what it has, and give it nothing new; `UnknownName` if there is none of that id."""
        self.dispatcher.shell.drain_instance(instance_id)

    async def resume_instance(self, instance_id: str) -> None:
        """Check an instance that drains or has drained, and use it again; raises what `Shell.resume_instance` does."""
        await self.dispatcher.shell.resume_instance(instance_id)

    async def remove_instance(self, instance_id: str, *, grace_s: float = 30.0) -> None:
        """Let an instance finish what it has, for at most `grace_s`, and forget it; `UnknownName` if there is none."""
        await self.dispatcher.shell.remove_instance(instance_id, grace_s)

    # -- reload ------------------------------------------------------------------------------------------------

    def on_reload(self, section: str, callback: Callable[[Any], str], *, fixed: Collection[str] = ()) -> None:
        """Have `callback` called when a plugin's section of the configuration has changed.

        Args:
            section: Such as ``gateway``.
            callback: Gets the options; returns, at once, a note for people, mostly empty. If it raises, they stay.
            fixed: Options that need a restart; the callback gets them as they were.
        """
        self.reloaders[section] = Reloader(callback, frozenset(fixed))

    async def reload(self, config: Configuration | None = None, *, dry_run: bool = False) -> Changes:
        """Put another configuration in force; what runs and what waits goes on. One reload at a time.

        Once begun it goes on to its end although its caller leaves.

        Args:
            config: Checked against the same plugins; None to read the same file again, under the same flags.
            dry_run: Only say what would change.

        Raises:
            ConfigurationError: It is wrong, and nothing has changed.
            PluginError: A plugin that it names is broken, and nothing has changed.
        """
        shell = self.dispatcher.shell
        # What is read later is put in force later.
        async with self._reading:
            if config is None:
                config = await asyncio.to_thread(lambda: check_configuration(self.config.raw.again(), self.host))
            routes = await prepare(self, config)
            working = shell.spawn(self._reload(config, routes, dry_run=dry_run))
        await asyncio.wait({working})
        if working.cancelled():
            raise ClosedError("this manager was closed meanwhile")
        return working.result()

    async def _reload(self, config: Configuration, routes: list[Route], *, dry_run: bool) -> Changes:
        async with self._changing:
            changes = await reload(self, config, routes, dry_run=dry_run)
        if not dry_run:
            self._events.emit("reload", changes.as_dict())
        return changes

    # -- what there is -----------------------------------------------------------------------------------------

    def events(self, *, requests: bool = False, tenant: str | None = None) -> EventStream:
        """What happens from now on, until the manager is closed; see `Event`.

        Args:
            requests: Finished requests, too.
            tenant: Of these only those of this tenant; None for all.
        """
        self.dispatcher  # noqa: B018 - a manager that is not started has no events
        return self._events.listen(requests=requests, tenant=tenant)

    def instances(self) -> tuple[InstanceReport, ...]:
        """All instances and how they are."""
        return self.dispatcher.reports()

    def instance(self, instance_id: str) -> dict[str, Any]:
        """One instance and how it is and was, as plain data; `UnknownName` if there is none of that id."""
        return instance_status(self, instance_id)

    def queues(self) -> list[dict[str, Any]]:
        """The queues in which somebody waits, as plain data."""
        return queues_of(self)

    def status(self) -> dict[str, Any]:
        """What there is and how it is, as plain data, for people and for programs."""
        return status_of(self)

    def metrics_report(self, *, recent: bool = True) -> dict[str, Any]:
        """The numbers, in sum and by instance, model, route and method; of the last minutes, or of all time."""
        return self.dispatcher.metrics.report(recent=recent)
