"""Configurations as people and editors see them: effective values without secrets, and a JSON schema."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr
from pydantic_core import to_jsonable_python

from gleitzeit_core.config import (
    DEFAULT_STORE,
    DEFAULT_STRATEGY,
    Configuration,
    PluginsSection,
    RouteOptions,
    WithOptions,
)
from gleitzeit_core.config_messages import MASK, is_secret
from gleitzeit_core.plugin_discovery import describe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import BaseModel

    from gleitzeit_core.config_reading import ConfigPath
    from gleitzeit_core.plugins import PluginHost

_log = logging.getLogger(__name__)


def show_configuration(config: Configuration) -> dict[str, Any]:
    """The effective values in the canonical form, as plain data, with ``***`` for secrets."""

    def plain(options: BaseModel) -> Any:  # noqa: ANN401 - plain data
        return masked(to_jsonable_python(options, by_alias=True, fallback=str))

    return {
        "plugins": plain(config.plugins),
        "hubs": {name: {"type": hub.type.name, **plain(hub.options)} for name, hub in config.hubs.items()},
        "providers": {name: plain(provider.options) for name, provider in config.providers.items()},
        "routes": [
            {
                "methods": list(route.methods),
                "hubs": None if route.hubs is None else list(route.hubs),
                "strategy": {"name": route.strategy.type.name, **plain(route.strategy.options)},
                "max_queue": route.max_queue,
                "timeout_s": route.timeout_s,
                "max_tries": route.max_tries,
            }
            for route in config.routes
        ],
        "store": {"type": config.store.type.name, **plain(config.store.options)},
        **{name: plain(options) for name, options in config.sections.items()},
    }


def configuration_schema(host: PluginHost) -> dict[str, Any]:
    """The JSON schema of everything that is installed. Plugins whose options cannot be loaded are left out."""
    definitions: dict[str, Any] = {}

    def of(kind: WithOptions, place: str, key: str = "") -> Iterator[dict[str, Any]]:
        try:
            model = host.load_options(kind)
            schema = model.model_json_schema(ref_template=f"#/$defs/{place}.{kind.name}.{{model}}")
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything
            _log.warning("%s %s is left out of the schema: %s", place, kind.name, describe(error))
            return
        for name, definition in schema.pop("$defs", {}).items():
            definitions[f"{place}.{kind.name}.{name}"] = definition
        schema["description"] = kind.summary
        if key:
            schema["properties"] = {key: {"const": kind.name}, **schema.get("properties", {})}
            schema["required"] = [key, *schema.get("required", [])]
        yield schema

    def any_of(kinds: Mapping[str, WithOptions], place: str, key: str = "type") -> list[dict[str, Any]]:
        return [schema for kind in kinds.values() for schema in of(kind, place, key)]

    def each(kinds: Mapping[str, WithOptions], place: str) -> dict[str, Any]:
        return {name: schema for name, kind in kinds.items() for schema in of(kind, place)}

    route = RouteOptions.model_json_schema()
    route["properties"]["strategy"] = {
        "anyOf": [{"enum": list(host.strategies)}, *any_of(host.strategies, "strategy", "name")],
        "default": DEFAULT_STRATEGY,
    }
    properties = {
        "plugins": PluginsSection.model_json_schema(),
        "hubs": {"type": "object", "additionalProperties": {"anyOf": any_of(host.hubs, "hub")}},
        "providers": {"type": "object", "properties": each(host.providers, "provider"), "additionalProperties": False},
        "routes": {"type": "array", "items": route},
        "store": {"anyOf": any_of(host.stores, "store"), "default": {"type": DEFAULT_STORE}},
        **each(host.sections, "section"),
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Gleitzeit configuration",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "$defs": definitions,
    }


def masked(value: Any, path: ConfigPath = ()) -> Any:  # noqa: ANN401 - plain data
    """A copy without secrets, nor passwords in URLs."""
    if isinstance(value, Mapping):
        return {key: masked(item, (*path, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [masked(item, path) for item in value]
    if value is None or isinstance(value, bool):
        return value
    if is_secret(path) or value == str(SecretStr(MASK)):
        return MASK
    return re.sub(r"//[^/@\s]*@", f"//{MASK}@", value) if isinstance(value, str) else value
