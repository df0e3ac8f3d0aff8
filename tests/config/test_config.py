"""Right configurations: what they mean."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from gleitzeit_core.config import Configuration, check_configuration, read_configuration
from gleitzeit_core.config_show import show_configuration
from gleitzeit_core.errors import ConfigurationError
from gleitzeit_core.plugins import PluginHost
from gleitzeit_core.routing import HedgePolicy, Share

from .samples import FULL

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Check = Callable[..., Configuration]


def test_everything_has_a_default(check: Check, tmp_path: Path) -> None:
    """An empty configuration is right: memory, the defaults of every plugin, and one route for everything."""
    config = check("")
    assert not config.hubs
    assert not config.explicit_hubs
    assert config.store.type.name == "memory"
    assert config.sections["mains"].model_dump()["port"] == 8484
    assert config.providers["light"].options.model_dump() == {"dim": False}
    (route,) = config.routes
    assert (route.methods, route.hubs, route.strategy.type.name) == (("*",), None, "least_loaded")
    assert (route.max_queue, route.timeout_s, route.max_tries) == (256, 600.0, 3)
    assert config.source == tmp_path / "c.yaml"


def test_everything_can_be_set(check: Check) -> None:
    """Options are those of the named types, checked."""
    config = check(FULL)
    assert config.explicit_hubs
    assert [(name, hub.name, hub.type.name) for name, hub in config.hubs.items()] == [
        ("hall", "hall", "lamp"),
        ("cellar", "cellar", "lamp"),
    ]
    hall: Any = config.hubs["hall"].options
    assert (hall.discover, hall.instances[0], hall.instances[1].weight) == (True, "http://a", 2.0)
    first, second, last = config.routes
    assert (first.hubs, first.strategy.type.name, first.max_queue) == (("hall",), "brightest", 0)
    assert first.strategy.options.model_dump() == {"patience_s": 3.0}
    assert (second.hubs, second.strategy.type.name, second.timeout_s, second.max_tries) == (
        None,
        "round_robin",
        None,
        1,
    )
    assert last.methods == ("*",)
    assert config.store.options.model_dump() == {"path": "/tmp"}  # noqa: S108
    assert config.providers["light"].options.model_dump() == {"dim": True}
    assert config.sections["mains"].model_dump()["port"] == 9000


NEAR = """
from gleitzeit_core.hookspecs import StrategyType, hookimpl

@hookimpl
def gleitzeit_register_strategies():
    options = "gleitzeit_core.strategies.base:NoOptions"
    return [StrategyType(name="near", target="near:Near", options=options, summary="Near ones.", filters=True)]
"""


def test_a_chain_of_strategies(check: Check, tmp_path: Path) -> None:
    """Filters, then the one that chooses; a list of one is just that one, and a filter may come last."""
    (tmp_path / "near.py").write_text(NEAR)
    config = check(
        "plugins: {files: [./near.py]}\n"
        "routes:\n  - {methods: ['light/on'], strategy: [near, {name: brightest, patience_s: 2}]}\n"
        "  - {methods: ['light/*'], strategy: [round_robin]}\n  - {methods: ['*'], strategy: [near, near]}\n"
    )
    assert [route.chain for route in config.routes] == ["near -> brightest", "round_robin", "near -> near"]
    first, second, _ = config.routes
    assert [one.type.name for one in first.filters] == ["near"]
    assert first.strategy.options.model_dump() == {"patience_s": 2.0}
    assert second.filters == ()
    shown = show_configuration(config)["routes"]
    assert shown[0]["strategy"] == [{"name": "near"}, {"name": "brightest", "patience_s": 2.0}]
    assert shown[1]["strategy"] == {"name": "round_robin"}


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("true", HedgePolicy()),
        ("{budget: 0.1, min_samples: 9}", HedgePolicy(budget=0.1, min_samples=9)),
        ("{}", HedgePolicy()),
        ("false", None),
        ("null", None),
    ],
)
def test_hedging_is_asked_for(check: Check, text: str, policy: HedgePolicy | None) -> None:
    """By true, or by its options; what is shown can be read again."""
    config = check(f"routes: [{{methods: ['*'], hedge: {text}}}]")
    assert config.routes[0].hedge == policy
    again = check(yaml.safe_dump(show_configuration(config)))
    assert again.routes[0].hedge == policy


def test_shares_of_a_route(check: Check) -> None:
    """In the order in which they are given."""
    (route,) = check(
        "routes: [{methods: ['*'], shed_from: 1, shares: [{tenant: a, share: 0.5}, {model: m, share: 0.5}]}]"
    ).routes
    assert route.shares == (Share(share=0.5, tenant="a"), Share(share=0.5, model="m"))
    assert route.shed_from == 1.0


def test_it_can_be_read_again(check: Check, tmp_path: Path) -> None:
    """Under the same environment and flags."""
    path = tmp_path / "c.yaml"
    check("mains: {port: 1}")
    raw = read_configuration(path, environ={"GLEITZEIT_MAINS__HOST": "b"}, overrides={"mains": {"volts": 110}})
    path.write_text("mains: {port: 2}")
    assert raw.again().data == {"mains": {"port": 2, "host": "b", "volts": 110}}


def test_the_first_route_that_matches(check: Check) -> None:
    """Patterns go over the whole method, and the last resort matches all."""
    routes = check(FULL).routes
    matching = {
        method: [any(fnmatchcase(method, one) for one in route.methods) for route in routes].index(True)
        for method in ("light/on", "light/dim", "light/", "other/x", "light")
    }
    assert matching == {"light/on": 0, "light/dim": 1, "light/": 1, "other/x": 2, "light": 2}


@pytest.mark.parametrize("pattern", ["*", "*/*"])
def test_no_second_last_resort(check: Check, pattern: str) -> None:
    """A route for everything stays the only one."""
    assert len(check(f"routes: [{{methods: ['{pattern}'], max_tries: 1}}]").routes) == 1


def test_empty_sections_count_as_absent(check: Check) -> None:
    """As when everything below a key is commented out; but `{}` says that there are no hubs."""
    assert not check("hubs:\nroutes:\nstore:\nmains:\nplugins:\nproviders:\n  light:\n").explicit_hubs
    assert check("hubs: {}").explicit_hubs


def test_without_hubs_a_route_may_name_any(check: Check) -> None:
    """Which there will be is not known before they are looked for."""
    assert check("routes: [{methods: ['light/*'], hubs: [lamp]}]").routes[0].hubs == ("lamp",)


def test_environment_and_flags_are_checked_like_the_file(check: Check) -> None:
    """They go before it, and their problems name them."""
    assert check("mains: {port: 1}", GLEITZEIT_MAINS__PORT="2").sections["mains"].model_dump()["port"] == 2
    raw = read_configuration(None, environ={}, overrides={"mains": {"port": 70000}})
    with pytest.raises(ConfigurationError, match=r"flags: mains\.port: must be at most 65535, not 70000"):
        check_configuration(raw, PluginHost.load())


def test_a_configuration_never_changes(check: Check) -> None:
    """Its sections and options are frozen."""
    config = check(FULL)
    with pytest.raises(FrozenInstanceError):
        config.explicit_hubs = False  # type: ignore[misc]
