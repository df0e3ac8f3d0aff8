"""Loads plugins, each on its own: nothing one does wrong stops the host or costs another its place."""

from __future__ import annotations

import importlib
import inspect
import logging
import re
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any, Final

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
from gleitzeit_core.plugin_discovery import CORE, PluginRecord, Status, describe, unmet_requirement

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

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

_WORD = r"[a-z][a-z0-9_-]*"
_NAME = re.compile(rf"{_WORD}( {_WORD})*")
_IMPORT_STRING = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")

_log = logging.getLogger(__name__)


class _Refused(Exception):
    """Why a plugin is refused, and its status."""

    def __init__(self, reason: str, status: Status = "failed") -> None:
        super().__init__(reason)
        self.status: Status = status


class Loader:
    """Loads plugins once.

    Args:
        disabled: Names of plugins or of distributions that are not even imported.
    """

    def __init__(self, disabled: Collection[str]) -> None:
        self.tables: dict[type[Descriptor], dict[str, Any]] = {kind: {} for kind in KINDS}
        self.owners: dict[Descriptor, PluginRecord] = {}
        self._disabled = frozenset(disabled)
        self._names: dict[str, PluginRecord] = {}
        self._hooks: set[str] = set()
        self._manager = pluggy.PluginManager(GROUP)
        self._add_hookspecs(HookSpecs)

    def load(self, plugins: Sequence[PluginRecord]) -> None:
        """Load them in order. All hook specs are known before any plugin's hooks are checked."""
        core = next((it.version for it in plugins if it.distribution == CORE), "")
        for step in (partial(self._open, core), self._add_specs, self._register):
            for plugin in plugins:
                if plugin.status == "ok":
                    self._attempt(step, plugin)

    def _attempt(self, step: Callable[[PluginRecord], None], plugin: PluginRecord) -> None:
        """Do `step`. A plugin that calls `sys.exit` does not end us."""
        try:
            step(plugin)
        except _Refused as error:
            plugin.status, plugin.reason = error.status, str(error)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a plugin may raise anything
            plugin.status, plugin.reason = "failed", describe(error)
            _log.debug("plugin %s failed", plugin, exc_info=True)

    def implementations(self) -> dict[str, list[pluggy.HookImpl]]:
        """Those of every hook, in the order of plugins but for ``tryfirst`` and ``trylast``."""
        callers = {name: getattr(self._manager.hook, name) for name in self._hooks}
        return {n: sorted(c.get_hookimpls(), key=lambda i: i.trylast - i.tryfirst) for n, c in callers.items()}

    def _open(self, core: str, plugin: PluginRecord) -> None:
        """First step: import it, unless there is a reason not to, such as the version of the core."""
        if not self._disabled.isdisjoint({plugin.name, plugin.distribution}):
            raise _Refused("by plugins.disabled in the configuration", "disabled")
        first = self._names.setdefault(plugin.name, plugin)
        if first is not plugin:
            raise _Refused(_conflict(f"plugin name {plugin.name!r}", first, plugin), "conflict")
        if reason := unmet_requirement(plugin, core):
            raise _Refused(reason, "incompatible")
        plugin.module = plugin.load()

    def _add_specs(self, plugin: PluginRecord) -> None:
        """Second step: its own hook specs, asked for before pluggy knows it."""
        hook = getattr(plugin.module, "gleitzeit_register_hookspecs", None)
        for text in _answer(hook) if callable(hook) else ():
            self._add_hookspecs(import_string(text))

    def _add_hookspecs(self, specs: Any) -> None:  # noqa: ANN401 - a class or a module
        names = {name for name in dir(specs) if self._manager.parse_hookspec_opts(specs, name) is not None}
        for name in names:
            if name in self._hooks or not name.startswith(f"{GROUP}_"):
                raise _Refused(f"hook spec {name!r} is taken or lacks the prefix")
        self._manager.add_hookspecs(specs)
        self._hooks |= names

    def _register(self, plugin: PluginRecord) -> None:
        """Third step: check its hooks and ask it what it brings."""
        if other := self._manager.get_name(plugin.module):
            raise _Refused(f"the same module as plugin {other!r}", "conflict")
        try:
            self._manager.register(plugin.module, name=plugin.name)
            offers = [offer for name, impl in list(self._hooks_of(plugin.module)) for offer in _offers(name, impl)]
        except BaseException:
            self._manager.unregister(name=plugin.name)
            raise
        self._claim(plugin, offers)

    def _hooks_of(self, module: object) -> Iterator[tuple[str, pluggy.HookImpl]]:
        """Its hooks, or a refusal: nobody would ever call one of the wrong name or kind."""
        for name, value in getattr(module, "__dict__", {}).items():
            if name in self._hooks and inspect.isfunction(value) and not hasattr(value, f"{GROUP}_impl"):
                raise _Refused(f"{name} is not marked with @hookimpl")
        for caller in self._manager.get_hookcallers(module) or ():
            for impl in (i for i in caller.get_hookimpls() if i.plugin is module):
                if not caller.has_spec() and not impl.optionalhook:
                    hint = nearest(caller.name, self._hooks) or "see `optionalhook`"
                    raise _Refused(f"unknown hook {caller.name!r}; {hint}")
                if impl.hookwrapper or impl.wrapper or inspect.iscoroutinefunction(impl.function):
                    raise _Refused(f"{caller.name} must be a plain, synchronous function")
                yield caller.name, impl

    def _claim(self, plugin: PluginRecord, offers: Iterable[Descriptor]) -> None:
        """The first to bring a name keeps it; as the core is first of all, it never loses one."""
        clashes = []
        for offer in offers:
            table, what = self.tables[type(offer)], f"{KINDS[type(offer)][0]} {offer.name!r}"
            if isinstance(offer, SectionType) and offer.name in CORE_SECTIONS:
                clashes.append(f"{what} is the core's own")
            elif offer.name in table:
                clashes.append(_conflict(what, self.owners[table[offer.name]], plugin))
            else:
                table[offer.name] = offer
                self.owners[offer] = plugin
                plugin.provides += (offer,)
        if clashes:
            raise _Refused("; ".join(clashes), "conflict")


def import_string(text: str) -> Any:  # noqa: ANN401 - whatever stands there
    """What ``module:Name`` names; raises whatever importing it raises."""
    if not _IMPORT_STRING.fullmatch(text):
        raise ValueError(f"{text!r} is not of the form module:Name")
    module, _, name = text.partition(":")
    return getattr(importlib.import_module(module), name)


def _answer(hook: Callable[[], object]) -> list[Any]:
    """What a registering hook returns, as a list; None is nothing."""
    answer = hook()
    if not isinstance(answer, list | tuple | None):
        name = getattr(hook, "__name__", "a hook")
        raise _Refused(f"{name} returned {type(answer).__name__}, not a list")
    return list(answer or ())


def _offers(hook: str, impl: pluggy.HookImpl) -> Iterator[Descriptor]:
    """What an implementation of a registering hook returns, checked; nothing for other hooks."""
    for kind in (kind for kind, (_, name) in KINDS.items() if name == hook):
        for offer in _answer(impl.function):
            if type(offer) is not kind:
                raise _Refused(f"{hook} returned a {type(offer).__name__}, not a {kind.__name__}")
            for it in fields(offer):
                _check(offer, it.name, str(it.type))
            yield offer


def _check(offer: Descriptor, field: str, kind: str) -> None:
    """Whether a field has its type and form: nothing else would notice before it is used."""
    value: Any = getattr(offer, field)
    good = isinstance(value, {"bool": bool, "int | None": int | None}.get(kind, str))
    if good and field == "name":
        good, kind = _NAME.fullmatch(value) is not None, "of lower-case letters, digits, '-' and '_'"
    elif good and (field in ("target", "options") or (field == "conformance" and value)):
        good, kind = _IMPORT_STRING.fullmatch(value) is not None, "module:Name"
    if not good:
        raise _Refused(f"{KINDS[type(offer)][0]} {offer.name!r}: {field} must be {kind}, not {value!r}")


def _conflict(what: str, first: PluginRecord, second: PluginRecord) -> str:
    """Who both are, and what to do. Plugins of one name are told apart by distribution."""
    if first is second:
        return f"{what} is brought twice by {first}"
    same = first.name == second.name
    one, two = (first.distribution, second.distribution) if same else (first.name, second.name)
    return (
        f"{what} is brought by {first}, which keeps it, and by {second}; choose with "
        f"plugins: {{disabled: [{two}]}} or plugins: {{disabled: [{one}]}}"
    )
