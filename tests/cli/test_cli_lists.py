from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, SecretStr

from gleitzeit_core.cli.options import fields_of
from gleitzeit_core.cli.output import duration, printable, size

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Ended

    Cli = Callable[..., Ended]
    Install = Callable[..., None]


# -- plugins


def test_plugins_are_listed_with_what_they_provide(cli: Cli, install: Install) -> None:
    """The table names plugin, distribution, version, state and all that it brings; nothing goes to standard error."""
    install("good")
    ended = cli("plugins")
    assert (ended.status, ended.err) == (0, "")
    head, core, one = ended.out.splitlines()
    assert head.split() == ["NAME", "DISTRIBUTION", "VERSION", "STATUS", "PROVIDES", "REASON"]
    assert core.split()[:4] == ["core", "gleitzeit-core", "0.1.0", "ok"]
    assert "command switch, lamps list; hub type lamp; provider light; section mains; store drawer; strategy" in one


def test_plugins_for_programs(cli: Cli, install: Install) -> None:
    """The keys are documented and stay; what is absent is null."""
    install("good")
    one = next(plugin for plugin in cli("plugins", "--json").json()["plugins"] if plugin["name"] == "one")
    assert list(one) == ["name", "distribution", "version", "status", "provides", "reason", "source"]
    assert (one["status"], one["reason"], one["version"]) == ("ok", None, "1.0")
    assert {"kind": "hub type", "name": "lamp", "summary": "Lamps."} in one["provides"]


@pytest.mark.parametrize("arguments", [["plugins"], ["plugins", "--json"]])
def test_broken_plugins_are_reported_and_stop_nothing(cli: Cli, install: Install, arguments: list[str]) -> None:
    """The status is 0, the reasons stand in the listing, and one line of warning goes to standard error."""
    install("good", "broken", "misspelt", "same_name")
    ended = cli(*arguments)
    assert ended.status == 0
    assert ended.err == "Warning: 3 of 5 plugins cannot be used in full: broken, misspelt, one\n"
    assert "unknown hook" in ended.out
    assert "conflict" in ended.out


def test_disabled_plugins_are_no_cause_for_a_warning(cli: Cli, install: Install, tmp_path: Path) -> None:
    """They are listed as disabled; a name that nothing has is worth a warning, with the nearest."""
    install("good")
    (tmp_path / "gleitzeit.yaml").write_text("plugins: {disabled: [one, oen]}\n")
    ended = cli("plugins")
    assert "disabled" in ended.out
    assert ended.err == "Warning: plugins.disabled names 'oen', which nothing has; did you mean 'one'?\n"


# -- strategies


def test_strategies_are_listed(cli: Cli, install: Install) -> None:
    """By name, with the core's and those of plugins together."""
    install("good")
    names = [line.split()[0] for line in cli("strategies").out.splitlines()]
    assert names == ["NAME", "brightest", "least_loaded", "random", "round_robin"]
    listed = cli("strategies", "--json").json()["strategies"]
    assert [it["name"] for it in listed] == names[1:]
    assert list(listed[0]) == ["name", "summary", "filter"]


def test_a_strategy_is_explained(cli: Cli, install: Install) -> None:
    """Its page, and its options with type and default."""
    install("good")
    shown = cli("strategies", "show", "least_loaded").out
    assert shown.startswith("least_loaded: the instance with the least work")
    assert "Use it when in doubt." in shown
    assert shown.endswith("It has no options: strategy: least_loaded\n")
    shown = cli("strategies", "show", "brightest").out
    assert shown.splitlines()[-1].split() == ["patience_s", "number", "1.0", "-"]
    option = {"name": "patience_s", "type": "number", "required": False, "default": 1.0, "description": ""}
    assert cli("strategies", "show", "brightest", "--json").json() == {
        "name": "brightest",
        "summary": "The brightest.",
        "filter": False,
        "page": "",
        "example": "routes:\n- methods: [llm/*]\n  strategy: {name: brightest, patience_s: 1.0}\n",
        "options": [{**option, "limits": {}}],
    }


def test_an_unknown_strategy_is_answered_with_the_nearest(cli: Cli, install: Install) -> None:
    """And with those there are."""
    install()
    ended = cli("strategies", "show", "round_robbin")
    assert (ended.status, ended.out) == (2, "")
    assert "installed: least_loaded, random, round_robin; did you mean 'round_robin'?" in ended.err


# -- how things are shown


class Colour(StrEnum):
    """Of a lamp."""

    RED = "red"


class Inner(BaseModel):
    """Inside."""

    path: Path = Path("x")


class Options(BaseModel):
    """One field for each kind of annotation."""

    text: str
    number: float = 1.5
    either: int | None = None
    choice: Literal["a", "b"] = "a"
    colour: Colour = Colour.RED
    secret: SecretStr | None = None
    items: list[Annotated[str, Field(min_length=1)]] = []
    inner: Inner = Inner()
    inners: dict[str, Inner] = {}
    made: list[int] = Field(default_factory=lambda: [1], description="A list\n  of numbers.", examples=[[2]])
    needs: str = Field(default_factory=lambda data: data["text"])
    anything: Any = None
    bare: list = []  # type: ignore[type-arg]
    renamed: bool = Field(default=True, alias="as")


def test_options_in_words() -> None:
    """Every annotation has words that a person understands; defaults are plain data."""
    found = {option.name: option for option in fields_of(Options)}
    assert {name: option.takes for name, option in found.items()} == {
        "text": "text",
        "number": "number",
        "either": "whole number or null",
        "choice": "'a' or 'b'",
        "colour": "'red'",
        "secret": "secret text or null",
        "items": "list of text",
        "inner": "mapping",
        "inners": "mapping",
        "made": "list of whole number",
        "needs": "text",
        "anything": "anything",
        "bare": "list",
        "as": "true or false",
    }
    assert [name for name, option in found.items() if option.required] == ["text"]
    assert (found["inner"].default, found["colour"].default, found["made"].default) == ({"path": "x"}, "red", [1])
    assert (found["needs"].default, found["made"].example, found["inners"].models) == (None, [2], (Inner,))
    assert found["made"].description == "A list of numbers."


def test_numbers_for_people() -> None:
    """Three digits and a unit, at every magnitude."""
    assert [duration(s) for s in (0, 0.0123, 0.9996, 1, 59.96, 150, 7300, 200_000)] == [
        "0 ms",
        "12.3 ms",
        "1000 ms",
        "1 s",
        "60 s",
        "2.5 min",
        "2.03 h",
        "2.31 d",
    ]
    assert [size(b) for b in (0, 999, 1234, 98_362_432, 5.5e9, 2e12)] == [
        "0 B",
        "999 B",
        "1.23 kB",
        "98.4 MB",
        "5.5 GB",
        "2 TB",
    ]


def test_control_characters_are_made_visible() -> None:
    """What a server sends cannot move the cursor or change colours; line ends and umlauts stay."""
    assert printable("a\x1b[2Jb\x07\x9b\r\n\tü→") == "a\\x1b[2Jb\\x07\\x9b\\x0d\n\tü→"


def test_json_is_readable_and_exact(cli: Cli, install: Install, tmp_path: Path) -> None:
    """Letters of all alphabets stay as they are."""
    install()
    (tmp_path / "gleitzeit.yaml").write_text("plugins: {files: [./лампа.py]}\n")
    out = cli("plugins", "--json").out
    assert "лампа" in out
    assert json.loads(out)["plugins"][-1]["status"] == "failed"
