"""Loads plugins, each on its own.

Nothing a plugin does wrong stops the host or costs another plugin its place: each step of each plugin stands in its own
`try`, and what became of it is a `PluginRecord`.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import re
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final, Literal

import pluggy

from gleitzeit_core.errors import nearest
from gleitzeit_core.hookspecs import (
    GROUP,
    CommandType,
    Descriptor,
    HookSpecs,
    HubType,
    ProviderType,
    SectionType,
    StoreType,
    StrategyType,
)
from gleitzeit_core.plugin_discovery import FoundPlugin, core_version, describe, unmet_requirement

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

Status = Literal["ok", "disabled", "failed", "incompatible", "conflict"]

CORE_SECTIONS: Final = ("plugins", "hubs", "providers", "routes", "store")
"""The sections of a configuration that are the core's own; no plugin can bring one of these names."""

KINDS: Final[Mapping[type[Descriptor], tuple[str, str]]] = {
    HubType: ("hub type", "gleitzeit_register_hubs"),
    ProviderType: ("provider", "gleitzeit_register_providers"),
    StrategyType: ("strategy", "gleitzeit_register_strategies"),
    StoreType: ("store", "gleitzeit_register_stores"),
    CommandType: ("command", "gleitzeit_register_commands"),
    SectionType: ("section", "gleitzeit_register_sections"),
}
"""The word for each kind of descriptor, and the hook that returns it."""

_NAME = r"[a-z][a-z0-9_-]*"
_FIELD_TYPES: Final[Mapping[str, Any]] = {"str": str, "bool": bool, "int | None": int | None}
_IMPORT_STRING = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PluginRecord:
    """What became of one plugin.

    Args:
        name: The entry point's name, or a file's without its suffix.
        distribution: Who brings it; ``file`` for a single file.
        version: The distribution's; empty for a file.
        status: ``ok``; ``disabled`` by the configuration; ``failed``; ``incompatible`` with this
            core; ``conflict``: a name it brings is taken, and it brings only the rest.
        provides: What it brings.
        reason: Why it is not ``ok``, for a person; empty when it is.
        source: The entry point's value, or the file's path.
    """

    name: str
    distribution: str
    version: str
    status: Status
    provides: tuple[Descriptor, ...]
    reason: str
    source: str


class _RefusedError(Exception):
    """A plugin is refused."""

    def __init__(self, reason: str, status: Status = "failed") -> None:
        super().__init__(reason)
        self.status: Status = status


@dataclass(slots=True)
class _Plugin:
    """A plugin while it is being loaded."""

    found: FoundPlugin
    module: object = None
    status: Status = "ok"
    reason: str = ""
    provides: list[Descriptor] = field(default_factory=list)

    def attempt(self, step: Callable[[_Plugin], None]) -> None:
        """Do `step` if the plugin is still well. One that calls `sys.exit` does not end us."""
        if self.status != "ok":
            return
        try:
            step(self)
        except _RefusedError as error:
            self.status, self.reason = error.status, str(error)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a plugin may raise anything
            self.status, self.reason = "failed", describe(error)
            _log.debug("plugin %s failed", self.found, exc_info=True)

    def record(self) -> PluginRecord:
        """What became of it."""
        it = self.found
        return PluginRecord(
            it.name, it.distribution, it.version, self.status, tuple(self.provides), self.reason, it.source
        )


class Loader:
    """Loads plugins once.

    Args:
        disabled: Names of plugins or of distributions that are not even imported.
    """

    def __init__(self, disabled: Collection[str]) -> None:
        self.manager = _new_manager()
        self.tables: dict[type[Descriptor], dict[str, Any]] = {kind: {} for kind in KINDS}
        self.owners: dict[Descriptor, FoundPlugin] = {}
        self._disabled = frozenset(disabled)
        self._names: dict[str, FoundPlugin] = {}
        self._hooks = set(_spec_names(self.manager, HookSpecs))
        self._version = core_version()

    def load(self, found: Iterable[FoundPlugin]) -> tuple[PluginRecord, ...]:
        """Load them in order. All hook specs are known before any plugin's hooks are checked."""
        plugins = [_Plugin(plugin) for plugin in found]
        for step in (self._open, self._add_specs, self._register):
            for plugin in plugins:
                plugin.attempt(step)
        return tuple(plugin.record() for plugin in plugins)

    def implementations(self) -> dict[str, tuple[pluggy.HookImpl, ...]]:
        """Those of every hook, in the order of plugins but for ``tryfirst`` and ``trylast``."""
        return {
            name: tuple(sorted(_impls(self.manager, name), key=lambda i: i.trylast - i.tryfirst))
            for name in self._hooks
        }

    def _open(self, plugin: _Plugin) -> None:
        """First step: import it, unless there is a reason not to."""
        found = plugin.found
        if not self._disabled.isdisjoint({found.name, found.distribution}):
            raise _RefusedError("by plugins.disabled in the configuration", "disabled")
        first = self._names.setdefault(found.name, found)
        if first is not found:
            raise _RefusedError(_conflict(f"plugin name {found.name!r}", first, found), "conflict")
        if reason := unmet_requirement(found, self._version):
            raise _RefusedError(reason, "incompatible")
        plugin.module = found.load()

    def _add_specs(self, plugin: _Plugin) -> None:
        """Second step: its own hook specs, asked for in a manager apart, where nobody else is."""
        apart = _new_manager()
        apart.register(plugin.module)
        for impl in _impls(apart, "gleitzeit_register_hookspecs"):
            for text in _answer(impl):
                specs = import_string(text)
                names = list(_spec_names(self.manager, specs))
                for name in names:
                    if name in self._hooks or not name.startswith(f"{GROUP}_"):
                        raise _RefusedError(f"hook spec {name!r} is taken or lacks the prefix")
                self.manager.add_hookspecs(specs)
                self._hooks.update(names)

    def _register(self, plugin: _Plugin) -> None:
        """Third step: check its hooks and ask it what it brings."""
        if other := self.manager.get_name(plugin.module):
            raise _RefusedError(f"the same module as plugin {other!r}", "conflict")
        try:
            self.manager.register(plugin.module, name=plugin.found.name)
            hooks = list(self._checked(plugin.module))
            offers = [d for name, impl in hooks for d in _descriptors(name, impl)]
        except BaseException:
            self.manager.unregister(name=plugin.found.name)
            raise
        self._claim(plugin, offers)

    def _checked(self, module: object) -> Iterator[tuple[str, pluggy.HookImpl]]:
        """Its hooks, or a refusal: nobody would ever call one of the wrong name or kind."""
        for name, value in getattr(module, "__dict__", {}).items():
            if name in self._hooks and inspect.isfunction(value) and not hasattr(value, f"{GROUP}_impl"):
                raise _RefusedError(f"{name} is not marked with @hookimpl")
        for caller in self.manager.get_hookcallers(module) or ():
            for impl in (i for i in caller.get_hookimpls() if i.plugin is module):
                if not caller.has_spec() and not impl.optionalhook:
                    hint = nearest(caller.name, self._hooks) or "see `optionalhook`"
                    raise _RefusedError(f"unknown hook {caller.name!r}; {hint}")
                if impl.hookwrapper or impl.wrapper or _is_async(impl.function):
                    raise _RefusedError(f"{caller.name} must be a plain, synchronous function")
                yield caller.name, impl

    def _claim(self, plugin: _Plugin, offers: Iterable[Descriptor]) -> None:
        """The first to bring a name keeps it; as the core is first of all, it never loses one."""
        clashes = []
        for offer in offers:
            word = KINDS[type(offer)][0]
            table = self.tables[type(offer)]
            if isinstance(offer, SectionType) and offer.name in CORE_SECTIONS:
                clashes.append(f"section {offer.name!r} is the core's own")
            elif offer.name in table:
                owner = self.owners[table[offer.name]]
                clashes.append(_conflict(f"{word} {offer.name!r}", owner, plugin.found))
            else:
                table[offer.name] = offer
                self.owners[offer] = plugin.found
                plugin.provides.append(offer)
        if clashes:
            plugin.status, plugin.reason = "conflict", "; ".join(clashes)


def import_string(text: str) -> Any:  # noqa: ANN401 - whatever stands there
    """What ``module:Name`` names; raises whatever importing it raises."""
    if not _IMPORT_STRING.fullmatch(text):
        raise ValueError(f"{text!r} is not of the form module:Name")
    module, _, name = text.partition(":")
    return getattr(importlib.import_module(module), name)


def _new_manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(HookSpecs)
    return manager


def _spec_names(manager: pluggy.PluginManager, specs: Any) -> Iterator[str]:  # noqa: ANN401
    return (name for name in dir(specs) if manager.parse_hookspec_opts(specs, name) is not None)


def _impls(manager: pluggy.PluginManager, hook: str) -> list[pluggy.HookImpl]:
    caller: pluggy.HookCaller = getattr(manager.hook, hook)
    return caller.get_hookimpls()


def _is_async(function: object) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def _answer(impl: pluggy.HookImpl) -> list[Any]:
    """What an implementation returns, as a list; None is nothing."""
    answer = impl.function()
    if inspect.iscoroutine(answer):
        answer.close()
    if answer is None:
        return []
    if not isinstance(answer, list | tuple):
        name = getattr(impl.function, "__name__", "a hook")
        raise _RefusedError(f"{name} returned {type(answer).__name__}, not a list")
    return list(answer)


def _descriptors(hook: str, impl: pluggy.HookImpl) -> Iterator[Descriptor]:
    """What an implementation of a registering hook returns, checked; nothing for other hooks."""
    for kind, (word, name) in KINDS.items():
        for descriptor in _answer(impl) if name == hook else ():
            if type(descriptor) is not kind:
                found = type(descriptor).__name__
                raise _RefusedError(f"{hook} returned a {found}, not a {kind.__name__}")
            _check(descriptor, word)
            yield descriptor


def _check(descriptor: Any, word: str) -> None:  # noqa: ANN401 - its fields may hold anything yet
    """Whether its fields have their types and forms: nothing else would notice before they are used."""
    name = rf"{_NAME}( {_NAME})*" if isinstance(descriptor, CommandType) else _NAME
    for it in fields(descriptor):
        value = getattr(descriptor, it.name)
        if not isinstance(value, _FIELD_TYPES[str(it.type)]):
            raise _RefusedError(f"{word} {descriptor.name!r}: {it.name} must be {it.type}, not {value!r}")
        if it.name == "name" and not re.fullmatch(name, value):
            raise _RefusedError(f"{word} name {value!r} is not of the form {name}")
        is_import = it.name in ("target", "options") or (it.name == "conformance" and value)
        if is_import and not _IMPORT_STRING.fullmatch(value):
            raise _RefusedError(f"{word} {descriptor.name!r}: {it.name} {value!r} is not of the form module:Name")


def _conflict(what: str, first: FoundPlugin, second: FoundPlugin) -> str:
    """Who both are, and what to do. Plugins of one name are told apart by distribution."""
    if first is second:
        return f"{what} is brought twice by {first}"
    same = first.name == second.name
    one, two = (first.distribution, second.distribution) if same else (first.name, second.name)
    return (
        f"{what} is brought by {first}, which keeps it, and by {second}; choose with "
        f"plugins: {{disabled: [{two}]}} or plugins: {{disabled: [{one}]}}"
    )
