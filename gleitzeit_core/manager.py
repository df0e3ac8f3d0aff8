"""Everything together, by name and from configuration: hubs, providers, routes, store and plugins."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Self

from gleitzeit_core.config import check_configuration, find_configuration, read_configuration
from gleitzeit_core.dispatch import Dispatcher
from gleitzeit_core.errors import ClosedError, GleitzeitError, UnknownMethod
from gleitzeit_core.hub_provider import HubProvider
from gleitzeit_core.plugins import PluginHost
from gleitzeit_core.pool import State
from gleitzeit_core.routing import Route

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from random import Random
    from typing import Unpack

    from pydantic import BaseModel

    from gleitzeit_core.clock import Clock
    from gleitzeit_core.config import Configuration, RouteSection
    from gleitzeit_core.hookspecs import HubType, InstanceChange
    from gleitzeit_core.hub import ResourceHub
    from gleitzeit_core.persistence import HubPersistenceAdapter
    from gleitzeit_core.provider import Provider, RequestOptions
    from gleitzeit_core.runs import InstanceReport, OnInstance, Stream
    from gleitzeit_core.strategies.base import Strategy

logger = logging.getLogger(__name__)

# Looked up once: it reads files, which must not stop a running loop.
_VERSION = version("gleitzeit-core")
# Changes of instances that wait to be written to the store; beyond this the oldest is dropped, as newer ones follow.
_CHANGES_MAX = 10_000


class ResourceManager:
    """Runs a configuration, checked already, with the plugins it was checked against.

    For example::

        async with ResourceManager.from_config() as manager:
            answer = await manager.execute("llm/chat", {"model": "smollm2", "messages": [...]})
    """

    def __init__(self, config: Configuration, host: PluginHost) -> None:
        self.config, self.host = config, host
        self.providers: dict[str, Provider[Any]] = {}
        self.store: HubPersistenceAdapter | None = None
        self.started_at = time.time()
        self._dispatcher: Dispatcher | None = None
        self._changes: asyncio.Queue[InstanceChange] = asyncio.Queue(_CHANGES_MAX)

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
        # Plugins may import heavy SDKs, which must not stop a running loop.
        routes = await asyncio.to_thread(lambda: [self._route(section) for section in self.config.routes])
        self._dispatcher = Dispatcher(routes, observers=self.host)
        try:
            await self._open_store()
            await self._open_providers()
            await self._open_hubs()
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
            providers, self.providers = self.providers, {}
            await asyncio.gather(*(provider.close() for provider in providers.values()), return_exceptions=True)
            if self.store is not None:
                await self.store.close()

    def _route(self, section: RouteSection) -> Route:
        strategy, options = self.host.load_target(section.strategy.type), section.strategy.options

        def make(random: Random, clock: Clock) -> Strategy[Any]:
            made: Strategy[Any] = strategy(options, random=random, clock=clock)
            return made

        return Route(
            name=" ".join(section.methods),
            methods=section.methods,
            strategy=make,
            hubs=None if section.hubs is None else frozenset(section.hubs),
            max_queue=section.max_queue,
            timeout_s=section.timeout_s,
            max_tries=section.max_tries,
        )

    async def _open_store(self) -> None:
        kind = await asyncio.to_thread(self.host.load_target, self.config.store.type)
        self.store = kind(self.config.store.options, clock=self.dispatcher.clock)
        await self.store.open()
        self.dispatcher.shell.listen(self._note)
        self.dispatcher.shell.spawn(self._write_changes())

    async def _open_providers(self) -> None:
        for name, section in self.config.providers.items():
            kind = await asyncio.to_thread(self.host.load_target, section.type)
            provider: Provider[Any] = kind(section.options)
            provider.bind(self.dispatcher)
            await provider.open()
            self.providers[name] = provider

    async def _open_hubs(self) -> None:
        for provider in self.providers.values():
            if isinstance(provider, HubProvider):
                await self.add_hub(provider.make_hub())
        if not self.config.explicit_hubs:
            await self._open_what_is_there()
            return
        hubs = [await self._make_hub(s.type, s.options, s.name) for s in self.config.hubs.values()]
        # When one fails, the others come to an end too before everything is closed.
        results = await asyncio.gather(*(self.add_hub(hub) for hub in hubs), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _open_what_is_there(self) -> None:
        """No hub is configured: try the kinds that need no configuration, fallbacks only when nothing is found."""
        ranked = [hub for hub in self.host.hubs.values() if hub.auto_rank is not None]
        for kind in sorted(ranked, key=lambda hub: hub.auto_rank or 0):
            if kind.fallback and any(report.state == State.READY for report in self.instances()):
                continue
            try:
                options = self.host.load_options(kind)()
                await self.add_hub(await self._make_hub(kind, options, kind.name))
            except Exception as error:  # noqa: BLE001 - nobody asked for it by name, so the others go on without it
                logger.warning("hub type %s cannot be used: %s", kind.name, error)

    async def _make_hub(self, kind: HubType, options: BaseModel, name: str) -> ResourceHub[Any]:
        target = await asyncio.to_thread(self.host.load_target, kind)
        hub: ResourceHub[Any] = target(options, name=name)
        return hub

    async def add_hub(self, hub: ResourceHub[Any]) -> None:
        """Start a hub, and check its instances; `ValueError` if there is one of that name."""
        await self.dispatcher.shell.add_hub(hub)

    async def remove_hub(self, name: str, *, grace_s: float = 30.0) -> None:
        """Let a hub's instances finish what they have, then stop it; `KeyError` if there is none of that name."""
        await self.dispatcher.shell.remove_hub(name, grace_s=grace_s)

    @property
    def dispatcher(self) -> Dispatcher:
        """What carries requests out; `ClosedError` if the manager is not started."""
        if self._dispatcher is None:
            raise ClosedError("this manager is not started: use it in an 'async with' block")
        return self._dispatcher

    def provider(self, method: str) -> Provider[Any]:
        """The provider that has `method`; `UnknownMethod` if none has."""
        found = self.providers.get(method.partition("/")[0])
        if found is None:
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

    def instances(self) -> tuple[InstanceReport, ...]:
        """All instances and how they are."""
        return self.dispatcher.reports()

    def status(self) -> dict[str, Any]:
        """What there is and how it is, as plain data, for people and for programs."""
        machine = self.dispatcher.shell.admission
        totals = self.dispatcher.metrics.sum()
        return {
            "version": _VERSION,
            "configuration": str(self.config.source) if self.config.source else None,
            "uptime_s": round(time.time() - self.started_at, 3),
            "requests": {"active": self.dispatcher.active, "waiting": machine.waiting, **totals.results},
            "hubs": [
                {"name": hub.name, "kind": hub.kind, "instances": len(hub.instances)}
                for hub in self.dispatcher.shell.hubs.values()
            ],
            "instances": [self._instance_status(report) for report in self.instances()],
            "routes": [
                {"methods": list(r.methods), "strategy": r.strategy.type.name, "max_queue": r.max_queue}
                for r in self.config.routes
            ],
            "methods": [
                {"name": m.name, "summary": m.summary, "streams": m.streams, "replayable": m.replayable}
                for provider in self.providers.values()
                for m in provider.methods
            ],
        }

    def _instance_status(self, report: InstanceReport) -> dict[str, Any]:
        instance, series = report.instance, self.dispatcher.metrics.sum(instance_id=report.instance.id)
        return {
            **{name: getattr(instance, name) for name in ("id", "hub", "kind", "endpoint")},
            "state": str(report.state),
            "reason": report.reason,
            "ownership": instance.ownership.value,
            "in_flight": report.in_flight,
            **{name: getattr(instance, name) for name in ("max_concurrent", "weight")},
            **{name: sorted(getattr(instance, name)) for name in ("tags", "capabilities", "warm")},
            "served": sum(series.results.values()),
            "success_rate": round(series.success_rate, 4),
            **{f"p{share}_s": round(series.total_s.percentile(share), 6) for share in (50, 95, 99)},
        }

    def _note(self, change: InstanceChange) -> None:
        if self._changes.full():
            self._changes.get_nowait()
        self._changes.put_nowait(change)

    async def _write_changes(self) -> None:
        """Writes behind: a store that is slow or down never holds up a request."""
        while self.store is not None and self.store.instances is not None:
            change = await self._changes.get()
            try:
                if (after := change.after) is not None:
                    record = {name: getattr(after, name) for name in ("hub", "kind", "endpoint", "generation")}
                    record |= {"ownership": after.ownership.value, "capabilities": sorted(after.capabilities)}
                    await self.store.instances.put(after.id, record | {"state": change.state})
                elif change.before is not None:
                    await self.store.instances.remove(change.before.id)
            except (GleitzeitError, OSError) as error:
                logger.warning("store: an instance was not written: %s", error)
