"""What is shown of a configuration, without its secrets, and the schema it follows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import yaml

from gleitzeit_core.cli.views import configuration_schema
from gleitzeit_core.config_show import show_configuration
from gleitzeit_core.plugins import PluginHost

from .samples import FULL, OPTIONS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gleitzeit_core.config import Configuration

    Check = Callable[..., Configuration]


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
