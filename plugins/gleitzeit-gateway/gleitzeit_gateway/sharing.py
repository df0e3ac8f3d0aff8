"""What several workers cannot share: found when a configuration is checked, with `gleitzeit config check` as well."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gleitzeit_gateway.options import GatewayOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gleitzeit_core.config import Configuration
    from gleitzeit_core.config_reading import ConfigPath
    from gleitzeit_core.plugins import PluginHost


def not_for_several(config: Configuration, host: PluginHost) -> Iterator[tuple[ConfigPath, str]]:
    """What would have each of several workers create instances of its own, as many as all of them may.

    Where nothing is configured, what is found might be somebody else's embedded LLM.

    Raises:
        PluginError: A type that is configured cannot be used.
    """
    gateway = config.sections["gateway"]
    if not isinstance(gateway, GatewayOptions) or gateway.workers == 1:
        return
    from gleitzeit_core.hub_provider import HubProvider  # noqa: PLC0415 - slow

    if not config.explicit_hubs:
        text = "several workers need to know their instances: give --instance URL, or configure 'hubs'"
        yield ("gateway", "workers"), text
    for section in config.hubs.values():
        if host.load_target(section.type)(section.options, name=section.name).creates:
            text = f"the hub {section.name!r} creates instances, and each worker would create its own: use one worker"
            yield ("hubs", section.name), text
    for name, provider in config.providers.items():
        if issubclass(host.load_target(provider.type), HubProvider):
            yield (
                ("gateway", "workers"),
                f"the provider {name!r} creates instances, and each worker would: use one worker",
            )
