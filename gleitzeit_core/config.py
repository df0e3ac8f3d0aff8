"""What a configuration means: checked whole against what is installed, before anything starts."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from pydantic import BaseModel

from gleitzeit_core.config_messages import MASK, keys_of, secrets_in, unknown_key, validated
from gleitzeit_core.config_reading import (
    ConfigPath,
    PluginsSection,
    RawConfiguration,
    find_configuration,
    path_text,
    read_configuration,
)
from gleitzeit_core.config_routes import RouteOptions
from gleitzeit_core.errors import ConfigurationError, PluginError, Problem, UnknownName
from gleitzeit_core.hookspecs import HubType, ProviderType, SectionType, StoreType, StrategyType
from gleitzeit_core.plugin_discovery import describe
from gleitzeit_core.plugins import CORE_SECTIONS
from gleitzeit_core.routing import HedgePolicy, Share

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gleitzeit_core.plugins import PluginHost

__all__ = [
    "Configuration",
    "PluginsSection",
    "RouteOptions",
    "check_configuration",
    "find_configuration",
    "read_configuration",
]

DEFAULT_STORE: Final = "memory"
DEFAULT_STRATEGY: Final = "least_loaded"
_CATCH_ALL: Final = {"methods": ["*"]}
_HUB_NAME: Final = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"

_log = logging.getLogger(__name__)
_N = TypeVar("_N")
_M = TypeVar("_M", bound=BaseModel)
_T = TypeVar("_T", HubType, ProviderType, StrategyType, StoreType)
WithOptions = HubType | ProviderType | StrategyType | StoreType | SectionType


@dataclass(frozen=True, slots=True)
class Chosen(Generic[_T]):
    """A type that a configuration names, with its checked options."""

    type: _T
    options: BaseModel = field(repr=False)


@dataclass(frozen=True, slots=True)
class HubSection(Chosen[HubType]):
    """One of ``hubs``."""

    name: str


ProviderSection = Chosen[ProviderType]
StrategySection = Chosen[StrategyType]
StoreSection = Chosen[StoreType]


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteSection:
    """One of ``routes``. The first that matches a method serves it.

    Args:
        methods: Patterns over ``protocol/method``, such as ``llm/*``; at least one.
        hubs: Names of hubs; None for all.
        strategy: How an instance is chosen.
        filters: What narrows the choice down before, in order.
        max_queue: How many requests may wait for one capability; 0: none ever waits.
        timeout_s: Deadline of a request that names none, in seconds; None for no limit.
        max_tries: Instances tried for one request, from 1: never a second.
        shed_from: How full the queue is when requests of the lowest band begin to be refused; 1 for never.
        hedge: When a second instance is tried beside a slow one; None for never.
        shares: Parts of the capacity that are kept for somebody.
    """

    methods: tuple[str, ...]
    hubs: tuple[str, ...] | None
    strategy: StrategySection
    filters: tuple[StrategySection, ...] = ()
    max_queue: int
    timeout_s: float | None
    max_tries: int
    shed_from: float
    hedge: HedgePolicy | None
    shares: tuple[Share, ...]

    @property
    def name(self) -> str:
        """For people and metrics."""
        return " ".join(self.methods)

    @property
    def chain(self) -> str:
        """Names of the filters and the strategy, for people: ``locality -> least_loaded``."""
        return " -> ".join(section.type.name for section in (*self.filters, self.strategy))


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """A configuration in which everything is right.

    Args:
        plugins: As read.
        hubs: By name; empty when none is configured.
        providers: All that are installed, by protocol.
        routes: In order; the last resort, which matches everything, included.
        store: Where shared state is kept.
        sections: Those that plugins bring, by key, with defaults where absent.
        source: The file; None when there is none.
        explicit_hubs: Whether ``hubs`` was given. If not, hub types with an `auto_rank` are tried.
        raw: What it was made from, to be read again.
    """

    plugins: PluginsSection
    hubs: Mapping[str, HubSection]
    providers: Mapping[str, ProviderSection]
    routes: tuple[RouteSection, ...]
    store: StoreSection
    sections: Mapping[str, BaseModel] = field(repr=False)
    source: Path | None
    explicit_hubs: bool
    raw: RawConfiguration = field(repr=False, compare=False)


def check_configuration(raw: RawConfiguration, host: PluginHost) -> Configuration:
    """Check everything.

    Options are validated with ``context={"base_dir": ...}``, for options that are relative paths.

    Raises:
        ConfigurationError: With all problems at once, those found while reading included.
    """
    return _Checker(raw, host).check()


class _Checker:
    """Checks one configuration, collecting problems. Methods return None for what is wrong."""

    def __init__(self, raw: RawConfiguration, host: PluginHost) -> None:
        self.raw, self.data, self.host = raw, raw.data, host
        self.problems: list[Problem] = []

    def check(self) -> Configuration:
        known = (*CORE_SECTIONS, *self.host.sections)
        for key in [key for key in self.data if key not in known]:
            self._problem((key,), "unknown section", self.host.hint("section", key) or unknown_key(key, known))
        plugins, hubs, routes = self._plugins(), self._hubs(), self._routes()
        providers = self._providers()
        store = self._typed(self._given("store", {"type": DEFAULT_STORE}), ("store",), self.host.store_type)
        sections = self._optional(self.host.sections, self.data, ())
        problems = self._all_problems()
        if problems or store is None:
            raise ConfigurationError(problems)
        config = Configuration(
            plugins=plugins,
            hubs=hubs,
            providers=providers,
            routes=routes,
            store=store,
            sections=sections,
            source=self.raw.source,
            explicit_hubs=self.data.get("hubs") is not None,
            raw=self.raw,
        )
        self._as_a_whole(config)
        if self.problems:
            raise ConfigurationError(self._all_problems())
        return config

    def _as_a_whole(self, config: Configuration) -> None:
        """Let plugins look for what no section shows by itself."""
        for name in config.sections:
            kind = self.host.sections[name]
            try:
                for path, message in self.host.load_check(kind)(config, self.host) if kind.check else ():
                    self._problem(path, message)
            except Exception as error:  # noqa: BLE001 - a plugin may raise anything
                text = error.message if isinstance(error, PluginError) else f"cannot be checked: {type(error).__name__}"
                self._problem((name,), text)

    def _plugins(self) -> PluginsSection:
        self._model(PluginsSection, self._given("plugins", {}), ("plugins",))
        by_source = {record.source: record for record in self.host.records}
        for number, path in enumerate(self.raw.plugins.files):
            record = by_source.get(str(path.absolute()))
            if record and record.status not in ("ok", "disabled"):
                self._problem(("plugins", "files", number), f"{record.status}: {record.reason}")
        return self.raw.plugins

    def _hubs(self) -> dict[str, HubSection]:
        found = {}
        for name, value in self._mapping("hubs").items():
            if not re.fullmatch(_HUB_NAME, name):
                self._problem(("hubs", name), "a hub's name has only letters, digits, '.', '-' and '_'")
            if it := self._typed(value, ("hubs", name), self.host.hub_type):
                found[name] = HubSection(it.type, it.options, name)
        return found

    def _providers(self) -> dict[str, ProviderSection]:
        given = self._mapping("providers")
        for name in given:
            self._find(self.host.provider_type, name, ("providers", name))
        found = self._optional(self.host.providers, given, ("providers",))
        return {name: Chosen(self.host.providers[name], options) for name, options in found.items()}

    def _routes(self) -> tuple[RouteSection, ...]:
        value = self.data.get("routes")
        if not isinstance(value, list | None):
            self._problem(("routes",), "must be a list")
        given = value if isinstance(value, list) else []
        found = [self._route(item, ("routes", number)) for number, item in enumerate(given)]
        if not any(route and {"*", "*/*"} & set(route.methods) for route in found):
            found.append(self._route(_CATCH_ALL, ("routes",)))
        return tuple(route for route in found if route)

    def _route(self, value: object, path: ConfigPath) -> RouteSection | None:
        options = self._model(RouteOptions, value, path)
        body = value if isinstance(value, Mapping) else {}
        for number, pattern in _texts(body.get("methods")):
            self._pattern(pattern, (*path, "methods", number))
        hubs = self.data.get("hubs")
        for number, name in _texts(body.get("hubs")):
            if isinstance(hubs, Mapping) and name not in hubs:
                self._problem((*path, "hubs", number), f"unknown hub {name!r}", unknown_key(name, hubs))
        named = DEFAULT_STRATEGY if body.get("strategy") is None else body["strategy"]
        chain = self._chain(named, (*path, "strategy"))
        if options is None or not chain:
            return None
        return RouteSection(
            methods=tuple(options.methods),
            hubs=None if options.hubs is None else tuple(options.hubs),
            strategy=chain[-1],
            filters=chain[:-1],
            hedge=None if options.hedge is None else HedgePolicy(**options.hedge.model_dump()),
            shares=tuple(Share(**share.model_dump()) for share in options.shares),
            **options.model_dump(include={"max_queue", "timeout_s", "max_tries", "shed_from"}),
        )

    def _chain(self, value: object, path: ConfigPath) -> tuple[StrategySection, ...]:
        """A strategy, or a list of filters and one strategy; empty when anything is wrong with it."""
        if value == []:
            self._problem(path, "needs 1 or more entries")
        items = [((*path, n), item) for n, item in enumerate(value)] if isinstance(value, list) else [(path, value)]
        found = [(here, self._typed(item, here, self.host.strategy_type, key="name")) for here, item in items]
        for here, one in found[:-1]:
            if one is not None and not one.type.filters:
                hint = "only the last of a list chooses; those before it must be filters"
                self._problem(here, f"{one.type.name!r} is not a filter", hint)
        chain = tuple(one for _, one in found if one is not None)
        return chain if len(chain) == len(items) else ()

    def _pattern(self, pattern: str, path: ConfigPath) -> None:
        """A pattern that can never match is a mistake; so is a protocol that nobody speaks."""
        protocol, slash, _ = pattern.partition("/")
        if slash and not re.search(r"[*?[]", protocol):
            self._find(self.host.provider_type, protocol, path)
        elif re.fullmatch(r"[^*?[]+", pattern):
            self._problem(path, f"{pattern!r} matches no method", f"write '{pattern}/*'")

    # -- what the sections have in common

    def _typed(
        self, value: object, path: ConfigPath, find: Callable[[str], _T], key: str = "type"
    ) -> Chosen[_T] | None:
        """A mapping that names its type, all other keys being the type's options; of a strategy, the name will do."""
        here = (*path, key)
        if key == "name" and isinstance(value, str):
            here, value = path, {key: value}
        if not isinstance(value, Mapping | None):
            or_name = "a name, or " if key == "name" else ""
            self._problem(path, f"must be {or_name}a mapping with the key {key!r}")
            return None
        body = dict(value or {})
        kind = self._find(find, body.pop(key, None), here)
        options = None if kind is None else self._options(kind, body, path, key)
        return None if kind is None or options is None else Chosen(kind, options)

    def _find(self, find: Callable[[str], _N], name: object, path: ConfigPath) -> _N | None:
        """What `name` names."""
        if not isinstance(name, str | None):
            self._problem(path, "must be a name")
            return None
        try:
            return find(name or "")
        except UnknownName as error:
            message = f"unknown {error.kind} {name!r}" if name else f"the {error.kind} is missing"
            self._problem(path, f"{message}; installed: {', '.join(error.known) or 'none'}", error.hint)
            return None

    def _options(self, kind: WithOptions, value: object, path: ConfigPath, key: str = "") -> BaseModel | None:
        """The options of `kind`, checked."""
        try:
            model = self.host.load_options(kind)
        except PluginError as error:
            self._problem(path, error.message)
            return None
        return self._model(model, value, path, key)

    def _optional(
        self, kinds: Mapping[str, ProviderType] | Mapping[str, SectionType], given: Mapping[str, Any], path: ConfigPath
    ) -> dict[str, BaseModel]:
        """The options of each; where nothing is given, a plugin that is broken is only worth a warning."""
        found: dict[str, BaseModel | None] = {}
        for name, kind in kinds.items():
            if given.get(name) is not None:
                found[name] = self._options(kind, given[name], (*path, name))
                continue
            try:
                model = self.host.load_options(kind)
                found[name] = model.model_validate({}, context={"base_dir": self.raw.base_dir})
            except Exception as error:  # noqa: BLE001 - a plugin may raise anything
                _log.warning("%s is left out: %s", path_text((*path, name)), describe(error))
        return {name: options for name, options in found.items() if options is not None}

    def _model(self, model: type[_M], value: object, path: ConfigPath, key: str = "") -> _M | None:
        """`value` as a model. Where a model ignores unknown keys, they are an error all the same."""
        before = len(self.problems)
        if isinstance(value, Mapping) and model.model_config.get("extra") in (None, "ignore"):
            known = keys_of(model) | ({key} - {""})
            for name in sorted(value.keys() - known):
                self._problem((*path, name), "unknown key", unknown_key(name, known))
        try:
            checked, problems = validated(model, value, path, self.raw.place, {"base_dir": self.raw.base_dir})
            self.problems += problems
        except Exception as error:  # noqa: BLE001 - a plugin's own validators may raise anything
            self._problem(path, f"cannot be checked: {type(error).__name__} in {model.__name__}")
        return checked if len(self.problems) == before else None

    def _given(self, section: str, default: object) -> object:
        """What stands there; a section with nothing in it counts as absent."""
        value = self.data.get(section)
        return default if value is None else value

    def _mapping(self, section: str) -> Mapping[str, Any]:
        value = self._given(section, {})
        if isinstance(value, Mapping):
            return value
        self._problem((section,), "must be a mapping")
        return {}

    def _problem(self, path: ConfigPath, message: str, suggestion: str = "") -> None:
        self.problems.append(Problem(path_text(path), message, suggestion, self.raw.place(path)))

    def _all_problems(self) -> list[Problem]:
        """Those of the reading first; what they explain is not told twice, and nothing secret is told."""
        read = {problem.path for problem in self.raw.problems if problem.path}
        problems = [*self.raw.problems, *(p for p in self.problems if p.path not in read)]
        for secret in sorted(set(secrets_in(self.data)), key=len, reverse=True):
            told = ((p, p.message.replace(secret, MASK), p.suggestion.replace(secret, MASK)) for p in problems)
            problems = [replace(p, message=message, suggestion=suggestion) for p, message, suggestion in told]
        return problems


def _texts(value: object) -> list[tuple[int, str]]:
    """The texts of a list with their positions; what is no text is reported elsewhere."""
    items = enumerate(value if isinstance(value, list) else ())
    return [(number, item) for number, item in items if isinstance(item, str)]
