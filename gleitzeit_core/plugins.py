"""The plugin host: who brings what, and what became of every plugin."""

from __future__ import annotations

import logging
from collections import Counter
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from gleitzeit_core.errors import PluginError, UnknownName, nearest
from gleitzeit_core.hookspecs import (
    CommandType,
    Descriptor,
    HubType,
    InstanceChange,
    ProviderType,
    SectionType,
    StoreType,
    StrategyType,
)
from gleitzeit_core.plugin_discovery import PluginRecord, Status, describe, file_plugins, installed_plugins
from gleitzeit_core.plugin_loading import CORE_SECTIONS, KINDS, Loader, import_string

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from pathlib import Path

    from gleitzeit_core.config_reading import ConfigPath
    from gleitzeit_core.requests import FinishedRequest

__all__ = ["CORE_SECTIONS", "WELL_KNOWN", "PluginHost", "PluginRecord", "Status"]

# No index has these yet, so each is installed from a checkout, together with the plugin it needs.
_LLM, _PYTHON = "plugins/gleitzeit-llm", "plugins/gleitzeit-python"
_STRATEGIES = (
    *("adaptive", "consistent_hash", "ewma", "locality", "model_affinity", "power_of_two", "priority", "tagged"),
    "weighted",
)
WELL_KNOWN: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("hub type", "ollama"): ("plugins/gleitzeit-ollama", _LLM),
    ("hub type", "openai"): ("contrib/gleitzeit-openai", _LLM),
    ("hub type", "llamacpp"): ("contrib/gleitzeit-llamacpp", _LLM),
    ("hub type", "docker"): ("plugins/gleitzeit-docker", _PYTHON),
    ("hub type", "process"): ("contrib/gleitzeit-process", _PYTHON),
    ("provider", "llm"): (_LLM,),
    ("provider", "python"): (_PYTHON,),
    ("command", "python"): (_PYTHON,),
    ("section", "gateway"): ("plugins/gleitzeit-gateway", _LLM),
    ("command", "serve"): ("plugins/gleitzeit-gateway", _LLM),
    **{("strategy", name): ("plugins/gleitzeit-strategies",) for name in _STRATEGIES},
}
"""Folders in this repository, by (kind, name): the plugin that has it, then what that needs."""

_log = logging.getLogger(__name__)
_WithTarget = HubType | ProviderType | StrategyType | StoreType | CommandType
_WithOptions = HubType | ProviderType | StrategyType | StoreType | SectionType
_D = TypeVar("_D", bound=Descriptor)


class PluginHost:
    """All plugins. Made by `PluginHost.load`; afterwards it never changes.

    Attributes:
        records: One per plugin, the core's own first, then by (distribution, name), then files.
        unknown_disabled: Names that were to be disabled and that nothing has.
        hubs: Hub types by name; likewise `providers`, `strategies`, `stores`, `commands`, and
            `sections` of the configuration.
        observes_requests: Whether anybody wants `request_finished`; if not, its argument need not be made.
    """

    def __init__(self, loader: Loader, records: tuple[PluginRecord, ...], unknown_disabled: tuple[str, ...]) -> None:
        self.records, self.unknown_disabled = records, unknown_disabled
        self.hubs: Mapping[str, HubType] = loader.tables[HubType]
        self.providers: Mapping[str, ProviderType] = loader.tables[ProviderType]
        self.strategies: Mapping[str, StrategyType] = loader.tables[StrategyType]
        self.stores: Mapping[str, StoreType] = loader.tables[StoreType]
        self.commands: Mapping[str, CommandType] = loader.tables[CommandType]
        self.sections: Mapping[str, SectionType] = loader.tables[SectionType]
        self._tables = {word: loader.tables[kind] for kind, (word, _) in KINDS.items()}
        self._owners = loader.owners
        self._implementations = loader.implementations()
        self.observes_requests = bool(self._implementations["gleitzeit_request_finished"])

    def __repr__(self) -> str:
        counts = Counter(record.status for record in self.records)
        return f"<PluginHost {', '.join(f'{count} {status}' for status, count in counts.items())}>"

    @classmethod
    def load(
        cls, *, disabled: Collection[str] = (), files: Sequence[Path] = (), needed: Collection[str] = ()
    ) -> PluginHost:
        """Find and load all plugins.

        Args:
            disabled: Names of plugins, or of distributions, that are not even imported.
            files: Single-file plugins, loaded after those that are installed.
            needed: Names of plugins that must be well.

        Raises:
            PluginError: One of `needed` is missing or broken.
        """
        loader, records = Loader(disabled), (*installed_plugins(), *file_plugins(files))
        loader.load(records)
        known = {name for it in records for name in (it.name, it.distribution)}
        states = {it.name: f"{it.status}: {it.reason}" for it in records}
        states |= {it.name: "ok" for it in records if it.status == "ok"}
        bad = [f"{n} is {states.get(n, 'not installed')}" for n in needed if states.get(n) != "ok"]
        if bad:
            raise PluginError(f"needed plugins cannot be used: {'; '.join(bad)}")
        return cls(loader, records, tuple(name for name in disabled if name not in known))

    def hub_type(self, name: str) -> HubType:
        """The hub type called `name`, or `UnknownName` with what to do."""
        return self._lookup("hub type", self.hubs, name)

    def provider_type(self, name: str) -> ProviderType:
        """The provider of the protocol `name`, or `UnknownName` with what to do."""
        return self._lookup("provider", self.providers, name)

    def strategy_type(self, name: str) -> StrategyType:
        """The strategy called `name`, or `UnknownName` with what to do."""
        return self._lookup("strategy", self.strategies, name)

    def store_type(self, name: str) -> StoreType:
        """The store called `name`, or `UnknownName` with what to do."""
        return self._lookup("store", self.stores, name)

    def hint(self, kind: str, name: str) -> str:
        """How to get what is missing; empty when nothing sensible can be said.

        Args:
            kind: ``hub type``, ``provider``, ``strategy``, ``store``, ``command`` or ``section``.
            name: The name that nothing answers to.
        """
        if not nearest(name, self._tables[kind]):  # an installed name that is near is the better answer
            name = next(iter(get_close_matches(name, [n for k, n in WELL_KNOWN if k == kind], 1, 0.7)), name)
        folders = WELL_KNOWN.get((kind, name), ())
        likely = {name, f"gleitzeit-{name}", *(f.split("/")[1] for f in folders[:1])}
        for it in self.records:
            if it.status != "ok" and likely & {it.name, it.distribution}:
                return f"plugin {it.name} ({it.distribution}) is {it.status}: {it.reason}"
        paths = " ".join(f"./{folder}" for folder in folders)
        return f"{name!r} comes with pip install {paths} from a checkout of Gleitzeit" if paths else ""

    def load_target(self, descriptor: _WithTarget) -> Any:  # noqa: ANN401 - a class of any kind, or a command
        """Import what `descriptor` stands for: a class, or a click command.

        Raises:
            PluginError: It cannot be used; names the plugin, the target and the cause.
        """
        return self._import(descriptor, descriptor.target, object if isinstance(descriptor, CommandType) else type)

    def load_options(self, descriptor: _WithOptions) -> type[BaseModel]:
        """Import the options of `descriptor`, a pydantic model. Raises as `load_target` does."""
        model: type[BaseModel] = self._import(descriptor, descriptor.options, type(BaseModel))
        return model

    def load_check(self, section: SectionType) -> Callable[..., Iterable[tuple[ConfigPath, str]]]:
        """Import what checks the whole configuration for `section`. Raises as `load_target` does."""
        check: Callable[..., Iterable[tuple[ConfigPath, str]]] = self._import(section, section.check, object)
        return check

    def warn(self) -> None:
        """Log a warning for each plugin that is broken and each disabled name that nothing has."""
        for it in self.records:
            if it.status not in ("ok", "disabled"):
                _log.warning("plugin %s is %s: %s", it, it.status, it.reason)
        for name in self.unknown_disabled:
            hint = nearest(name, (it.name for it in self.records))
            _log.warning("plugins.disabled names %r, which nothing has%s", name, f"; {hint}" if hint else "")

    def instance_changed(self, change: InstanceChange) -> None:
        """Tell the observers of ``gleitzeit_instance_changed``."""
        self.call("gleitzeit_instance_changed", change=change)

    def request_finished(self, finished: FinishedRequest) -> None:
        """Tell the observers of ``gleitzeit_request_finished``."""
        self.call("gleitzeit_request_finished", finished=finished)

    def call(self, hook_name: str, **details: Any) -> list[Any]:  # noqa: ANN401 - the hook's own
        """Call a hook of every plugin, each on its own; for plugins with hook specs of their own.

        Returns:
            What each returned, in order, without None. One that raises is logged and left out.
        """
        results = []
        for impl in self._implementations.get(hook_name, ()):
            try:
                results.append(impl.function(*[details[name] for name in impl.argnames]))
            except (Exception, SystemExit):  # noqa: BLE001 - a plugin may raise anything
                _log.exception("plugin %s failed in %s", impl.plugin_name, hook_name)
        return [result for result in results if result is not None]

    def _lookup(self, word: str, table: Mapping[str, _D], name: str) -> _D:
        if name in table:
            return table[name]
        raise UnknownName(word, name, table, self.hint(word, name))

    def _import(self, descriptor: Descriptor, text: str, expected: type) -> Any:  # noqa: ANN401 - not yet known
        try:
            found = import_string(text)
            if not isinstance(found, expected):
                raise TypeError(f"not a {'class' if expected is type else 'pydantic model'}")  # noqa: TRY301
        except (Exception, SystemExit) as error:
            what, owner = f"{KINDS[type(descriptor)][0]} {descriptor.name!r}", self._owners.get(descriptor, "unknown")
            raise PluginError(f"plugin {owner}: {what}: {text}: {describe(error)}") from error
        return found
