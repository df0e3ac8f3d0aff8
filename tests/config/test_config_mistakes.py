"""Wrong configurations: what is said of them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from .samples import OPTIONS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gleitzeit_core.config import Configuration

    Check = Callable[..., Configuration]


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
