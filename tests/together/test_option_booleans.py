"""No option of any plugin here takes true or false for a number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gleitzeit_core.config import RouteOptions
from gleitzeit_core.config_messages import validated
from gleitzeit_core.plugins import PluginHost

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import BaseModel


def _models() -> Iterator[type[BaseModel]]:
    host = PluginHost.load()
    for kinds in (host.hubs, host.providers, host.strategies, host.stores, host.sections):
        yield from map(host.load_options, kinds.values())
    yield RouteOptions


def test_no_installed_option_takes_it() -> None:
    """Every number among the options of every type."""
    seen = 0
    for model in _models():
        for name, described in model.model_json_schema()["properties"].items() if model.model_fields else ():
            kinds = {described.get("type"), *(one.get("type") for one in described.get("anyOf", ()))}
            if {"integer", "number"} & kinds and "boolean" not in kinds:
                seen += 1
                _, problems = validated(model, {name: True})
                assert "must be a number, not true or false" in [problem.message for problem in problems], (model, name)
    assert seen > 10
