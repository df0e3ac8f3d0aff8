"""From what a configuration names to what does the work: hubs, routes and providers of their types.

Types are imported here, in a thread: plugins may import heavy SDKs, which must not stop a running loop.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_core.hub_provider import HubProvider
from gleitzeit_core.needs import checked
from gleitzeit_core.routing import Route
from gleitzeit_core.strategies.chain import Chain

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from random import Random

    from pydantic import BaseModel

    from gleitzeit_core.clock import Clock
    from gleitzeit_core.config import RouteSection
    from gleitzeit_core.hookspecs import HubType
    from gleitzeit_core.hub import ResourceHub
    from gleitzeit_core.manager import ResourceManager
    from gleitzeit_core.plugins import PluginHost
    from gleitzeit_core.provider import Provider
    from gleitzeit_core.strategies.base import Strategy

logger = logging.getLogger(__name__)


async def make_hub(host: PluginHost, kind: HubType, options: BaseModel, name: str) -> ResourceHub[Any]:
    """A hub, not started; `PluginError` if its type cannot be used."""
    target = await asyncio.to_thread(host.load_target, kind)
    hub: ResourceHub[Any] = target(options, name=name)
    return hub


async def hub_over(
    host: PluginHost, kind: HubType, settings: Mapping[str, Any], *, taken: Collection[str]
) -> ResourceHub[Any]:
    """A hub, not started, of the one instance that `settings` describe, under a name that is not `taken`.

    Raises:
        InvalidRequest: The settings are wrong, or hubs of this kind list no instances.
        PluginError: The type cannot be used.
    """
    model = await asyncio.to_thread(host.load_options, kind)
    if "instances" not in model.model_fields:
        raise InvalidRequest(f"hubs of type {kind.name!r} take no instances by hand")
    options = checked(model, {"instances": [settings]})
    return await make_hub(host, kind, options, kind.name if kind.name not in taken else f"{kind.name}-added")


async def make_routes(host: PluginHost, sections: Iterable[RouteSection]) -> list[Route]:
    """The routes; `PluginError` if a strategy cannot be used."""
    return await asyncio.to_thread(lambda: [_route(host, section) for section in sections])


def _route(host: PluginHost, section: RouteSection) -> Route:
    types = [(host.load_target(one.type), one.options) for one in (*section.filters, section.strategy)]

    def make(random: Random, clock: Clock) -> Strategy[Any]:
        return Chain.of([strategy(options, random=random, clock=clock) for strategy, options in types])

    copied = ("methods", "max_queue", "timeout_s", "max_tries", "shed_from", "hedge", "shares")
    return Route(
        name=section.name,
        strategy=make,
        hubs=None if section.hubs is None else frozenset(section.hubs),
        **{name: getattr(section, name) for name in copied},
    )


async def open_provider(manager: ResourceManager, name: str) -> Provider[Any]:
    """The provider of one protocol, ready for requests."""
    section = manager.config.providers[name]
    kind = await asyncio.to_thread(manager.host.load_target, section.type)
    provider: Provider[Any] = kind(section.options)
    provider.bind(manager.dispatcher)
    await provider.open()
    return provider


async def open_hubs(manager: ResourceManager) -> None:
    """Start the hubs: the providers' own, then those of the configuration; without one, what can be found.

    Raises:
        GleitzeitError: One that is configured cannot start.
    """
    for provider in manager.providers.values():
        if isinstance(provider, HubProvider):
            await manager.add_hub(provider.make_hub())
    config, host = manager.config, manager.host
    if not config.explicit_hubs:
        await _open_what_is_there(manager)
        return
    hubs = [await make_hub(host, s.type, s.options, s.name) for s in config.hubs.values()]
    # When one fails, the others come to an end too before everything is closed.
    results = await asyncio.gather(*map(manager.add_hub, hubs), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


async def _open_what_is_there(manager: ResourceManager) -> None:
    """No hub is configured: try the kinds that need no configuration, fallbacks only when nothing is found."""
    host = manager.host
    ranked = [hub for hub in host.hubs.values() if hub.auto_rank is not None]
    for kind in sorted(ranked, key=lambda hub: hub.auto_rank or 0):
        if kind.fallback and any(report.serving for report in manager.instances()):
            continue
        try:
            options = host.load_options(kind)()
            await manager.add_hub(await make_hub(host, kind, options, kind.name))
        except Exception as error:  # noqa: BLE001 - nobody asked for it by name, so the others go on without it
            logger.warning("hub type %s cannot be used: %s", kind.name, error)
