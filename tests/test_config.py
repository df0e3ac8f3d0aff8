from __future__ import annotations

import json
import logging
from contextlib import suppress
from dataclasses import FrozenInstanceError
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gleitzeit_core.cli.views import configuration_schema
from gleitzeit_core.config import Configuration, check_configuration, read_configuration
from gleitzeit_core.config_show import show_configuration
from gleitzeit_core.errors import ConfigurationError
from gleitzeit_core.plugins import PluginHost
from gleitzeit_core.routing import HedgePolicy, Share

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Check = Callable[..., Configuration]

FULL = """
hubs:
  hall:
    type: lamp
    discover: true
    instances: ["http://a", {url: "http://b", weight: 2, colour: red}]
  cellar: {type: lamp}
routes:
  - {methods: ["light/on", "light/off"], hubs: [hall], strategy: {name: brightest, patience_s: 3}, max_queue: 0}
  - {methods: ["light/*"], strategy: round_robin, timeout_s: null, max_tries: 1}
providers: {light: {dim: true}}
store: {type: drawer, path: /tmp}
mains: {port: 9000}
"""


@pytest.fixture
def check(install: Callable[..., None], tmp_path: Path) -> Check:
    """Checks a configuration with the good plugin installed."""
    install("good")

    def check(text: str = "", **environ: str) -> Configuration:
        path = tmp_path / "c.yaml"
        path.write_text(text)
        raw = read_configuration(path, environ=environ)
        return check_configuration(raw, PluginHost.load(disabled=raw.plugins.disabled, files=raw.plugins.files))

    return check


@pytest.fixture
def problems(check: Check, tmp_path: Path) -> Callable[..., list[str]]:
    """The problems of a wrong configuration, as they are printed, with the file's name only."""

    def problems(text: str, **environ: str) -> list[str]:
        with pytest.raises(ConfigurationError) as caught:
            check(text, **environ)
        return [str(problem).replace(f"{tmp_path}/", "") for problem in caught.value.problems]

    return problems


# -- right ones


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


# -- wrong ones


def test_all_mistakes_at_once(problems: Callable[..., list[str]]) -> None:
    """Each with its place, its path, what is wrong and what to do; one of form and one in the environment included."""
    text = """
hubs:
  lan:
    type: lmap
  hall:
    type: lamp
    instances:
      - {urll: "http://gpu1", weight: 0, colour: whit}
    discover: maybe
    discover: true
routes:
  - {methods: ["ligth/*", light], hubs: [hal], stratgy: x}
  - {methods: ["light/*"], strategy: lest_loaded}
stor: {type: drawer}
"""
    assert problems(text, GLEITZEIT_MAINZ__PORT="1") == [
        "c.yaml:10: hubs.hall.discover: given twice, first at c.yaml:9",
        "c.yaml:14: stor: unknown section (did you mean 'store'?)",
        "GLEITZEIT_MAINZ__PORT: mainz: unknown section (did you mean 'mains'?)",
        "c.yaml:4: hubs.lan.type: unknown hub type 'lmap'; installed: lamp (did you mean 'lamp'?)",
        "c.yaml:8: hubs.hall.instances[0].weight: must be above 0.0, not 0",
        "c.yaml:8: hubs.hall.instances[0].colour: must be 'red' or 'white', not 'whit' (did you mean 'white'?)",
        "c.yaml:8: hubs.hall.instances[0].urll: unknown key (did you mean 'url'?)",
        "c.yaml:12: routes[0].stratgy: unknown key (did you mean 'strategy'?)",
        "c.yaml:12: routes[0].methods[0]: unknown provider 'ligth'; installed: light (did you mean 'light'?)",
        "c.yaml:12: routes[0].methods[1]: 'light' matches no method (write 'light/*')",
        "c.yaml:12: routes[0].hubs[0]: unknown hub 'hal' (did you mean 'hall'?)",
        (
            "c.yaml:13: routes[1].strategy: unknown strategy 'lest_loaded'; installed: brightest, least_loaded, "
            "random, round_robin (did you mean 'least_loaded'?)"
        ),
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("hubs: 5", "hubs: must be a mapping"),
        ("plugins: {files: [3]}", "plugins.files[0]: must be a path, not a number"),
        ("hubs: {a: }", "hubs.a.type: the hub type is missing; installed: lamp"),
        ("hubs: {a: [1]}", "hubs.a: must be a mapping with the key 'type'"),
        ("hubs: {a: {type: 5}}", "hubs.a.type: must be a name"),
        ("hubs: {a b: {type: lamp}}", "hubs['a b']: a hub's name has only letters, digits, '.', '-' and '_'"),
        ("hubs: {a: {type: lamp, min_idle: x}}", "hubs.a.min_idle: must be a whole number, not 'x'"),
        ("hubs: {a: {type: lamp, min_idle: 1.5}}", "hubs.a.min_idle: must be a whole number, not 1.5"),
        ("hubs: {a: {type: lamp, min_idle: 11}}", "hubs.a.min_idle: must be at most 10, not 11"),
        ("hubs: {a: {type: lamp, min_idle: }}", "hubs.a.min_idle: must be a whole number, not empty"),
        ("hubs: {a: {type: lamp, instances: {}}}", "hubs.a.instances: must be a list, not a mapping"),
        ("hubs: {a: {type: lamp, instances: [{}]}}", "hubs.a.instances[0].url: is missing"),
        (
            "hubs: {a: {type: lamp, instances: [5]}}",
            "hubs.a.instances[0]: must be text, not a number or must be a mapping, not a number (put it in quotes)",
        ),
        (
            "hubs: {a: {type: lamp, instances: [{url: a, headers: {x-y: [1]}}]}}",
            "hubs.a.instances[0].headers.x-y: must be text, not a list",
        ),
        (
            "hubs: {a: {type: lamp, zzz: 1}}",
            "hubs.a.zzz: unknown key (known: api_key, discover, instances, made, min_idle, pin)",
        ),
        ("hubs: {a: {type: lamp, made: [x]}}", "hubs.a.made[0]: should be a valid datetime"),
        ("hubs: {a: {type: lamp, bulb: x}}", "hubs.a.link: unknown key"),
        ("hubs: {a: {type: lamp, bulb: odd}}", "hubs.a: a bulb of an odd kind"),
        ("providers: {light: {dimm: true}}", "providers.light.dimm: unknown key (did you mean 'dim'?)"),
        ("providers: {lght: {}}", "providers.lght: unknown provider 'lght'; installed: light (did you mean 'light'?)"),
        ("providers: {light: 5}", "providers.light: must be a mapping, not a number"),
        ("providers: [light]", "providers: must be a mapping"),
        ("store: memory", "store: must be a mapping with the key 'type'"),
        ("store: {}", "store.type: the store is missing; installed: drawer, memory"),
        ("store: {type: drawer}", "store.path: is missing"),
        ("store: {type: memory, path: x}", "store.path: unknown key (known: none)"),
        ("routes: {}", "routes: must be a list"),
        ("routes: [5]", "routes[0]: must be a mapping, not a number"),
        ("routes: [{}]", "routes[0].methods: is missing"),
        ("routes: [{methods: []}]", "routes[0].methods: needs 1 or more entries"),
        ("routes: [{methods: '*'}]", "routes[0].methods: must be a list, not text"),
        ("routes: [{methods: ['']}]", "routes[0].methods[0]: needs 1 or more characters"),
        ("routes: [{methods: ['*'], hubs: []}]", "routes[0].hubs: needs 1 or more entries"),
        ("routes: [{methods: ['*'], max_queue: -1}]", "routes[0].max_queue: must be at least 0, not -1"),
        ("routes: [{methods: ['*'], timeout_s: 0}]", "routes[0].timeout_s: must be above 0.0, not 0"),
        ("routes: [{methods: ['*'], timeout_s: .inf}]", "routes[0].timeout_s: must be a finite number, not inf"),
        ("routes: [{methods: ['*'], max_tries: 0}]", "routes[0].max_tries: must be at least 1, not 0"),
        (
            "routes: [{methods: ['*'], strategy: 3}]",
            "routes[0].strategy: must be a name, or a mapping with the key 'name'",
        ),
        ("routes: [{methods: ['*'], strategy: []}]", "routes[0].strategy: needs 1 or more entries"),
        (
            "routes: [{methods: ['*'], strategy: [brightest, least_loaded]}]",
            "routes[0].strategy[0]: 'brightest' is not a filter (only the last of a list chooses; those before it must",
        ),
        (
            "routes: [{methods: ['*'], strategy: [{name: brightest, patience: 1}]}]",
            "routes[0].strategy[0].patience: unknown key (did you mean 'patience_s'?)",
        ),
        ("routes: [{methods: ['*'], strategy: [[]]}]", "routes[0].strategy[0]: must be a name, or a mapping with the"),
        ("routes: [{methods: ['*'], shed_from: 2}]", "routes[0].shed_from: must be at most 1"),
        (
            "routes: [{methods: ['*'], hedge: yes please}]",
            "routes[0].hedge: must be true, false or a mapping with percentile, budget, min_samples",
        ),
        ("routes: [{methods: ['*'], hedge: {percentile: 100}}]", "routes[0].hedge.percentile: must be below 100"),
        (
            "routes: [{methods: ['*'], hedge: {budgte: 1}}]",
            "routes[0].hedge.budgte: unknown key (did you mean 'budget'",
        ),
        ("routes: [{methods: ['*'], shares: [{share: 0.5}]}]", "routes[0].shares[0]: needs a 'tenant' or a 'model'"),
        ("routes: [{methods: ['*'], shares: [{tenant: a}]}]", "routes[0].shares[0].share: is missing"),
        (
            "routes: [{methods: ['*'], shares: [{tenant: a, share: 0.6}, {model: b, share: 0.5}]}]",
            "routes[0]: its shares add up to 110%, more than there is",
        ),
        (
            "routes: [{methods: ['*'], strategy: {name: brightest, patience: 1}}]",
            "routes[0].strategy.patience: unknown key (did you mean 'patience_s'?)",
        ),
        ("mains: 5", "mains: must be a mapping, not a number"),
        ("mains: {volts: 0}", "mains: no current; and the keys are []"),
        ("mains: {volts: 1}", "mains: cannot be checked: KeyError in Mains"),
        ("plugins: {disabled: one}", "plugins.disabled: must be a list, not text"),
        ("plugins: {file: []}", "plugins.file: unknown key (did you mean 'files'?)"),
        ("plugins: [x]", "plugins: must be a mapping, not a list"),
        ("mains: {keys: [abc]}", "mains.keys: is not valid"),
        ("zzz: 1", "zzz: unknown section (known: hubs, mains, plugins, providers, routes, store)"),
        ("gateway: {}", "gateway: unknown section ('gateway' comes with pip install ./plugins/gleitzeit-gateway "),
    ],
)
def test_a_mistake_is_one_plain_sentence(problems: Callable[..., list[str]], text: str, problem: str) -> None:
    """With its path, its line and, where one can be given, a suggestion."""
    (found,) = problems(text)
    assert found.startswith(f"c.yaml:1: {problem}")


def test_what_a_disabled_plugin_had_is_unknown_and_says_why(problems: Callable[..., list[str]]) -> None:
    """The hint names the plugin and its state."""
    told = problems("plugins: {disabled: [one]}\nhubs: {a: {type: lamp}}\none: {}")
    assert told == [
        "c.yaml:3: one: unknown section (plugin one (gz-one) is disabled: by plugins.disabled in the configuration)",
        "c.yaml:2: hubs.a.type: unknown hub type 'lamp'; installed: none",
    ]


def test_a_single_file_is_found_beside_the_configuration(check: Check, tmp_path: Path) -> None:
    """The checked section has its whole path."""
    (tmp_path / "good.py").write_text("")
    assert check("plugins: {files: [./good.py]}").plugins.files == [tmp_path / "good.py"]


def test_a_single_file_that_is_broken_is_an_error(problems: Callable[..., list[str]], tmp_path: Path) -> None:
    """It is named, so it must work; a good one beside it does."""
    (tmp_path / "good.py").write_text("")
    (tmp_path / "bad.py").write_text("raise RuntimeError('boom')")
    assert problems("plugins:\n  files:\n  - good.py\n  - bad.py\n  - none.py\n") == [
        "c.yaml:4: plugins.files[1]: failed: RuntimeError: boom",
        "c.yaml:5: plugins.files[2]: failed: FileNotFoundError: no such file",
    ]


OPTIONS = """
from gleitzeit_core.hookspecs import HubType, SectionType, ProviderType, hookimpl
@hookimpl
def gleitzeit_register_hubs():
    return [HubType(name="odd", target="gz_x:X", options="gz_x:X", summary="")]
@hookimpl
def gleitzeit_register_providers():
    return [ProviderType(name="odd", target="gz_x:X", options="gz_x:X", summary="")]
@hookimpl
def gleitzeit_register_sections():
    return [
        SectionType(name="odd", options="gz_x:X", summary=""),
        SectionType(name="strict", options="gz_one_parts:Drawer", summary=""),
    ]
"""


def test_options_that_cannot_be_loaded_matter_only_where_named(
    check: Check, problems: Callable[..., list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Named, they are an error with its cause; not named, a warning, and that plugin's part is left out."""
    (tmp_path / "odd.py").write_text(OPTIONS)
    files = "plugins: {files: [odd.py]}\n"
    with caplog.at_level(logging.WARNING):
        config = check(files)
    assert set(config.sections) == {"mains"}
    assert set(config.providers) == {"light"}
    assert [it.getMessage().split(":")[0] for it in caplog.records] == [
        "providers.odd is left out",
        "odd is left out",
        "strict is left out",
    ]
    told = problems(files + "hubs: {a: {type: odd}}\nproviders: {odd: {}}\nodd: {}\nstrict: {}\n")
    assert [line.split(": ")[:2] for line in told] == [
        ["c.yaml:2", "hubs.a"],
        ["c.yaml:3", "providers.odd"],
        ["c.yaml:4", "odd"],
        ["c.yaml:5", "strict.path"],
    ]
    assert all("No module named 'gz_x'" in line for line in told[:3])


WHOLE = """
from pydantic import BaseModel
from gleitzeit_core.hookspecs import SectionType, hookimpl

class Fuse(BaseModel):
    amps: int = 16

def too_many(config, host):
    if config.sections["fuse"].amps == 0:
        raise RuntimeError("boom")
    if len(config.hubs) > config.sections["fuse"].amps:
        yield ("fuse", "amps"), f"too few for {len(config.hubs)} hubs"

@hookimpl
def gleitzeit_register_sections():
    check = f"{__name__}:too_many"
    return [
        SectionType(name="fuse", options=f"{__name__}:Fuse", summary="", check=check),
        SectionType(name="lost", options=f"{__name__}:Fuse", summary="", check="" if %s else f"{__name__}:nothing"),
    ]
"""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("fuse: {amps: 2}", []),
        ("fuse: {amps: 1}", ["c.yaml:3: fuse.amps: too few for 2 hubs"]),
        ("fuse: {amps: 0}", ["c.yaml:3: fuse: cannot be checked: RuntimeError"]),
        # Not asked before everything is right by itself.
        ("fuse: {amps: 1}\nroutes: 7", ["c.yaml:4: routes: must be a list"]),
    ],
)
def test_a_section_may_look_at_the_whole(
    check: Check, problems: Callable[..., list[str]], tmp_path: Path, text: str, found: list[str]
) -> None:
    """What only several sections together show is told where it stands; a check that fails is told as such."""
    (tmp_path / "whole.py").write_text(WHOLE % "True")
    text = f"plugins: {{files: [whole.py]}}\nhubs: {{a: {{type: lamp}}, b: {{type: lamp}}}}\n{text}\n"
    if found:
        assert problems(text) == found
    else:
        assert len(check(text).hubs) == 2


def test_a_check_that_cannot_be_loaded(problems: Callable[..., list[str]], tmp_path: Path) -> None:
    """Its plugin is named with what is missing."""
    (tmp_path / "whole.py").write_text(WHOLE % "False")
    (said,) = problems("plugins: {files: [whole.py]}\n")
    assert "lost: plugin whole" in said
    assert "nothing" in said


# -- secrets


@pytest.mark.parametrize(
    "text",
    [
        "mains: {keys: hunter2}",
        "mains: {keys: [[hunter2]]}",
        "mains: {keys: {hunter3: hunter2}}",
        "mains: {keys: [hunter2], volts: 0}",
        "mains: {keyz: hunter2}",
        "hubs: {a: {type: lamp, api_key: [hunter2]}}",
        "hubs: {a: {type: lamp, instances: [{url: x, colour: 'http://me:hunter2@x'}]}}",
        "hubs: {a: {type: lamp, instances: [{headers: {authorization: {x: hunter2}}}]}}",
        "store: {password: hunter2}",
        "password: hunter2",
    ],
)
def test_no_message_shows_a_secret(problems: Callable[..., list[str]], text: str) -> None:
    """Whatever is wrong with it, or beside it."""
    assert "hunter2" not in "\n".join(problems(text))


def test_no_repr_shows_a_secret(check: Check) -> None:
    """A checked configuration may be logged."""
    text = "mains: {keys: [hunter2]}\nhubs: {a: {type: lamp, instances: [{url: 'http://me:hunter2@x'}]}}"
    assert "hunter2" not in repr(check(text))


def test_shown_values_are_effective_and_without_secrets(check: Check) -> None:
    """Defaults are filled in; the form is that of a file, and plain enough for JSON."""
    text = """
hubs:
  a:
    type: lamp
    api_key: hunter2
    pin: hunter2
    instances: [{url: "http://me:hunter2@x", headers: {X-Api-Key: hunter2}}]
routes: [{methods: ["light/*"], hubs: [a], strategy: brightest}]
mains: {keys: [hunter2, hunter2]}
"""
    shown = show_configuration(check(text))
    assert "hunter2" not in json.dumps(shown)
    assert shown == {
        "plugins": {"disabled": [], "files": []},
        "hubs": {
            "a": {
                "type": "lamp",
                "instances": [
                    {"url": "http://***@x", "weight": 1.0, "colour": "white", "headers": {"X-Api-Key": "***"}}
                ],
                "discover": False,
                "api_key": "***",
                "pin": "***",
                "made": [],
                "min_idle": 0,
            }
        },
        "providers": {"light": {"dim": False}},
        "routes": [
            {
                "methods": ["light/*"],
                "hubs": ["a"],
                "strategy": {"name": "brightest", "patience_s": 1.0},
                "max_queue": 256,
                "timeout_s": 600.0,
                "max_tries": 3,
                "shed_from": 0.8,
                "hedge": False,
                "shares": [],
            },
            {
                "methods": ["*"],
                "hubs": None,
                "strategy": {"name": "least_loaded"},
                "max_queue": 256,
                "timeout_s": 600.0,
                "max_tries": 3,
                "shed_from": 0.8,
                "hedge": False,
                "shares": [],
            },
        ],
        "store": {"type": "memory"},
        "mains": {"host": "127.0.0.1", "port": 8484, "keys": ["***", "***"], "volts": 230},
    }


def test_what_is_shown_can_be_read_again(check: Check) -> None:
    """But for secrets it means the same."""
    shown = show_configuration(check(FULL))
    assert show_configuration(check(yaml.safe_dump(shown))) == shown


# -- the schema


def test_the_schema_has_all_that_is_installed(check: Check) -> None:
    """Every section, hub type, strategy, store and provider, with their options; references lead somewhere."""
    check()
    schema = configuration_schema(PluginHost.load())
    text = json.dumps(schema)
    properties = schema["properties"]
    assert set(properties) == {"plugins", "hubs", "providers", "routes", "store", "mains"}
    (lamp,) = properties["hubs"]["additionalProperties"]["anyOf"]
    assert lamp["properties"]["type"] == {"const": "lamp"}
    assert lamp["required"] == ["type"]
    assert properties["mains"]["properties"]["port"]["maximum"] == 65535
    assert {it["properties"]["type"]["const"] for it in properties["store"]["anyOf"]} == {"memory", "drawer"}
    assert "patience_s" in text
    for name in [part.split('"')[0] for part in text.split('"$ref": "#/$defs/')[1:]]:
        assert name in schema["$defs"]


def test_the_schema_leaves_out_what_cannot_be_loaded(
    check: Check, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a warning for each."""
    check()
    (tmp_path / "odd.py").write_text(OPTIONS)
    schema = configuration_schema(PluginHost.load(files=[tmp_path / "odd.py"]))
    assert "strict" in schema["properties"]
    assert "odd" not in schema["properties"]
    assert caplog.text.count("is left out of the schema") == 3


# -- anything at all

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
