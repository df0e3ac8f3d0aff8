"""What a plugin can add: descriptors and the hooks that return them.

A plugin is a distribution with one entry point in the group ``gleitzeit``, pointing at a light module with functions
named after the hooks below and marked with `hookimpl`. They return frozen descriptors, which name classes by import
string (``package.module:Name``): nothing heavy is imported until a configuration asks for that name.

    from gleitzeit_core.hookspecs import HubType, hookimpl

    @hookimpl
    def gleitzeit_register_hubs():
        return [HubType(name="mine", target="my_hub.hub:MyHub", options="my_hub.options:MyOptions", summary="...")]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gleitzeit_core.requests import FinishedRequest
    from gleitzeit_core.resources import ResourceInstance

GROUP = "gleitzeit"
hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubType:
    """A kind of resource.

    Args:
        name: What ``type:`` in a configuration says.
        target: Import string of the `ResourceHub` subclass.
        options: Import string of its options, a pydantic model in a module without heavy imports.
        summary: One line for listings.
        conformance: Import string of the test classes it passes; empty for none.
        auto_rank: Its turn among the hubs tried when a configuration names none: lower first, and the first that has an
            instance ends the search for fallbacks. None: never used unasked.
        fallback: With `auto_rank`: used only when those before it found no instance.
    """

    name: str
    target: str
    options: str
    summary: str
    conformance: str = ""
    auto_rank: int | None = None
    fallback: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderType:
    """A protocol.

    Args:
        name: The protocol, the part of its methods before the slash: ``llm``.
        target: Import string of the `Provider` subclass.
        options: Import string of its options, a pydantic model.
        summary: One line for listings.
        conformance: Import string of the test classes it passes; empty for none.
    """

    name: str
    target: str
    options: str
    summary: str
    conformance: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyType:
    """A way to choose an instance.

    Args:
        name: What ``strategy:`` in a configuration says.
        target: Import string of the `Strategy` subclass.
        options: Import string of its options, a pydantic model.
        summary: One line for listings.
        page: When to use it, a few paragraphs for ``gleitzeit strategies show``.
        filters: Whether it is a `Filter`: one that may stand before the last in a chain.
    """

    name: str
    target: str
    options: str
    summary: str
    page: str = ""
    filters: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreType:
    """A place for state that outlives a process or is shared between replicas.

    Args:
        name: What ``store: {type: ...}`` says.
        target: Import string of the `HubPersistenceAdapter` subclass.
        options: Import string of its options, a pydantic model.
        summary: One line for listings.
    """

    name: str
    target: str
    options: str
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandType:
    """A command of the ``gleitzeit`` program.

    Args:
        name: ``serve``, or ``models pull`` for a command in a group.
        target: Import string of a `click.Command`.
        summary: One line for ``--help``, which must not import the target.
    """

    name: str
    target: str
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionType:
    """A top-level section of the configuration that a plugin brings, such as ``gateway``.

    Args:
        name: The key.
        options: Import string of its pydantic model.
        summary: One line for listings.
        check: Import string of a function that finds what only the whole configuration shows: it takes the
            `Configuration`, right otherwise, and the `PluginHost`, and gives pairs of a path and what is wrong there.
            Empty for none.
    """

    name: str
    options: str
    summary: str
    check: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceChange:
    """What observers of ``gleitzeit_instance_changed`` get.

    Args:
        before: The instance as it was; None when it is new.
        after: The instance as it is; None when it is gone.
        state: Its state in the pool after the change: ``ready``, ``down``, ...
        reason: Why, for a person; empty when there is nothing to say.
    """

    before: ResourceInstance | None
    after: ResourceInstance | None
    state: str
    reason: str


Descriptor = HubType | ProviderType | StrategyType | StoreType | CommandType | SectionType


class HookSpecs:
    """The hooks. All synchronous; those that register run once, at start."""

    @hookspec
    def gleitzeit_register_hubs(self) -> Sequence[HubType]:  # type: ignore[empty-body]
        """Kinds of resources."""

    @hookspec
    def gleitzeit_register_providers(self) -> Sequence[ProviderType]:  # type: ignore[empty-body]
        """Protocols."""

    @hookspec
    def gleitzeit_register_strategies(self) -> Sequence[StrategyType]:  # type: ignore[empty-body]
        """Ways to choose an instance."""

    @hookspec
    def gleitzeit_register_stores(self) -> Sequence[StoreType]:  # type: ignore[empty-body]
        """Places for shared state."""

    @hookspec
    def gleitzeit_register_commands(self) -> Sequence[CommandType]:  # type: ignore[empty-body]
        """Commands of the ``gleitzeit`` program."""

    @hookspec
    def gleitzeit_register_sections(self) -> Sequence[SectionType]:  # type: ignore[empty-body]
        """Top-level sections of the configuration."""

    @hookspec
    def gleitzeit_register_hookspecs(self) -> Sequence[str]:  # type: ignore[empty-body]
        """Import strings of classes with hook specs of the plugin's own, which others may then implement."""

    @hookspec
    def gleitzeit_instance_changed(self, change: InstanceChange) -> None:
        """An instance came, went or changed. Must return at once; what it raises is logged."""

    @hookspec
    def gleitzeit_request_finished(self, finished: FinishedRequest) -> None:
        """A request ended. Must return at once; what it raises is logged."""
