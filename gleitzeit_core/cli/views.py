"""Configurations as people and editors see them: effective values without secrets, and a JSON schema."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from gleitzeit_core.config import DEFAULT_STORE, DEFAULT_STRATEGY, PluginsSection, RouteOptions, WithOptions
from gleitzeit_core.config_show import show_configuration
from gleitzeit_core.plugin_discovery import describe

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gleitzeit_core.plugins import PluginHost

__all__ = ["configuration_schema", "show_configuration"]

_log = logging.getLogger(__name__)


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

    route = RouteOptions.model_json_schema(ref_template="#/$defs/route.{model}")
    definitions |= {f"route.{name}": definition for name, definition in route.pop("$defs").items()}
    strategies = [{"enum": list(host.strategies)}, *any_of(host.strategies, "strategy", "name")]
    chain = {"type": "array", "items": {"anyOf": strategies}, "minItems": 1}
    route["properties"]["strategy"] = {"anyOf": [*strategies, chain], "default": DEFAULT_STRATEGY}
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
