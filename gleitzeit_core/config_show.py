"""A configuration as plain data in its canonical form: the effective values, and a copy that gives no secret away."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr
from pydantic_core import to_jsonable_python

from gleitzeit_core.config_messages import MASK, is_secret

if TYPE_CHECKING:
    from pydantic import BaseModel

    from gleitzeit_core.config import Chosen, Configuration, RouteSection
    from gleitzeit_core.config_reading import ConfigPath


def effective(config: Configuration) -> dict[str, Any]:
    """The values in force, defaults included, secrets too: to be compared, not to be shown."""
    return {
        "plugins": _plain(config.plugins),
        "hubs": {name: _typed(hub) for name, hub in config.hubs.items()},
        "providers": {name: _plain(provider.options) for name, provider in config.providers.items()},
        "routes": [_route(route) for route in config.routes],
        "store": _typed(config.store),
        **{name: _plain(options) for name, options in config.sections.items()},
    }


def show_configuration(config: Configuration) -> dict[str, Any]:
    """The effective values in the canonical form, as plain data, with ``***`` for secrets."""
    shown: dict[str, Any] = shown_value(effective(config))
    return shown


def shown_value(value: object, path: ConfigPath = ()) -> Any:  # noqa: ANN401 - plain data
    """One of the values of `effective`, which stands at `path`, as plain data without secrets."""
    return masked(to_jsonable_python(value, by_alias=True, fallback=str), path)


def masked(value: Any, path: ConfigPath = ()) -> Any:  # noqa: ANN401 - plain data
    """A copy without secrets, nor passwords in URLs."""
    if isinstance(value, Mapping):
        return {key: masked(item, (*path, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [masked(item, (*path, number)) for number, item in enumerate(value)]
    if value is None or isinstance(value, bool):
        return value
    if is_secret(path) or value == str(SecretStr(MASK)):
        return MASK
    return re.sub(r"//[^/@\s]*@", f"//{MASK}@", value) if isinstance(value, str) else value


def _plain(options: BaseModel) -> dict[str, Any]:
    return options.model_dump(by_alias=True)


def _typed(chosen: Chosen[Any], key: str = "type") -> dict[str, Any]:
    return {key: chosen.type.name, **_plain(chosen.options)}


def _route(route: RouteSection) -> dict[str, Any]:
    chain = [_typed(one, "name") for one in (*route.filters, route.strategy)]
    return {
        "methods": list(route.methods),
        "hubs": None if route.hubs is None else list(route.hubs),
        "strategy": chain if route.filters else chain[0],
        **{name: getattr(route, name) for name in ("max_queue", "timeout_s", "max_tries", "shed_from")},
        "hedge": False if route.hedge is None else asdict(route.hedge),
        "shares": [asdict(share) for share in route.shares],
    }
