"""A plugin that does everything right."""

from __future__ import annotations

from gleitzeit_core.hookspecs import (
    CommandType,
    HubType,
    ProviderType,
    SectionType,
    StoreType,
    StrategyType,
    hookimpl,
)


@hookimpl
def gleitzeit_register_hubs() -> list[HubType]:
    """Lamps."""
    return [HubType(name="lamp", target="gz_one_parts:LampHub", options="gz_one_parts:LampOptions", summary="Lamps.")]


@hookimpl
def gleitzeit_register_providers() -> list[ProviderType]:
    """Light."""
    return [ProviderType(name="light", target="gz_one_parts:Light", options="gz_one_parts:LightOptions", summary="On.")]


@hookimpl
def gleitzeit_register_strategies() -> list[StrategyType]:
    """Brightest."""
    options = "gz_one_parts:BrightestOptions"
    return [StrategyType(name="brightest", target="gz_one_parts:Brightest", options=options, summary="The brightest.")]


@hookimpl
def gleitzeit_register_stores() -> list[StoreType]:
    """Drawer."""
    return [StoreType(name="drawer", target="gz_one_parts:Drawer", options="gz_one_parts:Drawer", summary="A drawer.")]


@hookimpl
def gleitzeit_register_commands() -> list[CommandType]:
    """Switch, and one in a group."""
    return [
        CommandType(name="switch", target="gz_one_parts:switch", summary="Switches."),
        CommandType(name="lamps list", target="gz_one_parts:switch", summary="Lists."),
    ]


@hookimpl
def gleitzeit_register_sections() -> list[SectionType]:
    """Mains."""
    return [SectionType(name="mains", options="gz_one_parts:Mains", summary="Where the current comes from.")]
