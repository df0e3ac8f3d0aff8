"""Any data at all, taken for a configuration."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gleitzeit_core.config import check_configuration, read_configuration
from gleitzeit_core.config_show import show_configuration
from gleitzeit_core.errors import ConfigurationError
from gleitzeit_core.plugins import PluginHost

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = st.sampled_from(
    [
        "plugins",
        "hubs",
        "providers",
        "routes",
        "store",
        "mains",
        "type",
        "name",
        "lamp",
        "drawer",
        "light",
        "methods",
        "instances",
        "url",
        "strategy",
        "brightest",
        "disabled",
        "files",
        "keys",
        "port",
        "*",
        "light/*",
        "headers",
    ]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | NAMES
DATA = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.text(max_size=8), inner, max_size=4),
    max_leaves=25,
)


@pytest.fixture
def host(install: Callable[..., None]) -> PluginHost:
    """With the good plugin."""
    install("good")
    return PluginHost.load()


@given(DATA)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_data_is_a_configuration_or_refused(host: PluginHost, data: object) -> None:
    """Never anything but a `Configuration`, which can be shown, or a `ConfigurationError`."""
    overrides = data if isinstance(data, dict) else {"hubs": data}
    with suppress(ConfigurationError):
        config = check_configuration(read_configuration(None, environ={}, overrides=overrides), host)
        json.dumps(show_configuration(config))
