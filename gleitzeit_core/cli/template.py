"""The text of a commented configuration, made from what is installed.

A line that begins with ``##`` explains; one that begins with ``# `` is a setting with its default, to be uncommented.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Final

import yaml

from gleitzeit_core.cli.options import OptionField, fields_of, suggested
from gleitzeit_core.cli.output import printable
from gleitzeit_core.config import DEFAULT_STORE, DEFAULT_STRATEGY, RouteOptions
from gleitzeit_core.errors import PluginError
from gleitzeit_core.hookspecs import HubType
from gleitzeit_core.hub import HubOptions
from gleitzeit_core.plugins import WELL_KNOWN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import BaseModel

    from gleitzeit_core.config import WithOptions
    from gleitzeit_core.plugins import PluginHost

_WIDTH: Final = 110
_DEPTH: Final = 3
"""How many models inside one another are explained."""

_HEAD: Final = """\
The configuration of Gleitzeit. All of it is optional; as it stands, it changes nothing.

Lines with one # are settings with their defaults: remove '# ' to change one. Then
'gleitzeit config check' lists all that is wrong, and 'gleitzeit config show' what is in effect.
Environment variables go before this file: GLEITZEIT_GATEWAY__PORT=9000 sets gateway.port.
"""
_PLUGINS: Final = """\
plugins: names of plugins not to load ('gleitzeit plugins' lists them), and files to load besides,
relative to this one.
"""
_HUBS: Final = """\
hubs: where the instances come from, under names of your choice. For example:

  hubs:
    lan: {{type: ollama, instances: ["http://gpu1:11434", "http://gpu2:11434"]}}

Without this section, these look around by themselves: {auto}.
"""
_PROVIDERS: Final = """\
providers: the protocols, with options of their own. All that are installed are used.
"""
_ROUTES: Final = """\
routes: which hubs serve which methods, and how. The first that matches a method serves it.

  methods    patterns such as llm/* or llm/chat; * is everything
  hubs       names from above; without it, all
  strategy   {strategies}
             ('gleitzeit strategies show NAME' explains one; with options: {{name: NAME, OPTION: VALUE}})
  max_queue  how many requests may wait for one capability; 0: none ever waits
  timeout_s  deadline of a request that names none, in seconds; null: no limit
  max_tries  instances tried for one request; 1: never a second
  shed_from  how full the queue is, from 0 to 1, when the lowest priority begins to be refused; 1: never
  hedge      true: try a second instance beside one that is slow to answer; false: never
  shares     parts of the capacity that are kept: {{tenant: NAME, share: 0.5}}, or with model: NAME
"""
_STORE: Final = """\
store: where state is kept that outlives a process or is shared between replicas.
"""


def configuration_template(host: PluginHost) -> str:
    """A configuration with every section and option; valid as it is, and again with every setting uncommented."""
    sections = [_explain(_HEAD), _plugins(), _hubs(host), _providers(host), _routes(host), _store(host)]
    for section in host.sections.values():
        text = _explain(f"{section.name}: {section.summary}") + f"{section.name}:\n"
        sections.append(text + _settings(host, section, "  "))
    return "\n".join(sections)


def _plugins() -> str:
    return _explain(_PLUGINS) + "plugins:\n  disabled: []\n  files: []\n"


def _hubs(host: PluginHost) -> str:
    ranked = sorted((h.auto_rank, h.name, h.fallback) for h in host.hubs.values() if h.auto_rank is not None)
    auto = [f"{name} (if there is nothing else)" if fallback else name for _, name, fallback in ranked]
    text = _explain(_HUBS.format(auto=", ".join(auto) or "none, as no hub type is installed that could"))
    for (kind, name), folders in WELL_KNOWN.items():
        if kind == "hub type" and name not in host.hubs:
            text += _explain(f"For type {name}: pip install {' '.join(f'./{f}' for f in folders)}")
    text += "# hubs:\n" if host.hubs else ""
    for hub in host.hubs.values():
        head = f"#   my-{hub.name}:\n#     type: {hub.name}\n"
        text += _explain(f"{hub.name}: {hub.summary}", "  ") + head + _settings(host, hub, "    ")
    return text


def _providers(host: PluginHost) -> str:
    text = _explain(_PROVIDERS) + "providers:\n"
    for provider in host.providers.values():
        text += _explain(provider.summary, "  ") + f"  {provider.name}:\n" + _settings(host, provider, "    ")
    return text


def _routes(host: PluginHost) -> str:
    text = _explain(_ROUTES.format(strategies=", ".join(sorted(host.strategies))))
    fields = {option.name: option.default for option in fields_of(RouteOptions)}
    values = {**fields, "methods": ["*"], "strategy": DEFAULT_STRATEGY, "hedge": False}
    lines = [f"{key}: {_yaml(value)}\n" for key, value in values.items() if value is not None]
    return text + "routes:\n  - " + "    ".join(lines)


def _store(host: PluginHost) -> str:
    text = _explain(_STORE) + f"store:\n  type: {DEFAULT_STORE}\n"
    for store in host.stores.values():
        text += _explain(f"type: {store.name} - {store.summary}", "  ")
        if store.name == DEFAULT_STORE:
            text += _settings(host, store, "  ")
        else:
            text += "".join(_explain(line, "    ") for line in _described(host, store))
    return text


def _settings(host: PluginHost, kind: WithOptions, indent: str) -> str:
    """The options of a kind: explained, then commented out with their defaults."""
    text = ""
    for option in _options(host, kind):
        text += "".join(_explain(line, indent) for line in _lines(option, _DEPTH))
        text += f"# {indent}{option.name}: {_yaml(suggested(option))}\n"
    return text


def _described(host: PluginHost, kind: WithOptions) -> Iterator[str]:
    for option in _options(host, kind):
        yield from _lines(option, _DEPTH)


def _options(host: PluginHost, kind: WithOptions) -> list[OptionField]:
    """Its own first, then those that every hub has."""
    try:
        found = fields_of(host.load_options(kind))
    except PluginError:
        return []  # 'gleitzeit plugins' and 'config check' say why
    return sorted(found, key=lambda option: isinstance(kind, HubType) and option.name in HubOptions.model_fields)


def _lines(option: OptionField, depth: int, *, with_default: bool = False) -> Iterator[str]:
    """What an option is for, then the keys of the mappings its value is made of."""
    default = f", {_yaml(option.default)}" if with_default else ""
    facts = f"{option.name} ({option.takes}{', required' if option.required else default})"
    yield f"{facts}: {option.description}" if option.description else facts
    for model in option.models if depth else ():
        yield from _keys(model, depth - 1)


def _keys(model: type[BaseModel], depth: int) -> Iterator[str]:
    for option in fields_of(model):
        yield from (f"  {line}" for line in _lines(option, depth, with_default=True))


def _yaml(value: object) -> str:
    """On one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False)
    return text.removesuffix("...\n").strip()


def _explain(text: str, indent: str = "") -> str:
    """Comment lines. A line that is indented itself goes on with that indent."""
    lines = []
    for paragraph in printable(text).splitlines():
        inner = " " * (len(paragraph) - len(paragraph.lstrip()))
        head = f"## {indent}"
        lines += textwrap.wrap(
            paragraph, _WIDTH, initial_indent=head, subsequent_indent=f"{head}{inner}  ", drop_whitespace=True
        ) or ["##"]
    return "".join(f"{line.rstrip()}\n" for line in lines)
