"""The command line on the strategies of gleitzeit-strategies."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING

import pytest
import yaml

from gleitzeit_core.plugins import PluginHost

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Ended

    Cli = Callable[..., Ended]
    Install = Callable[..., None]


def test_a_configuration_is_shown_with_its_chains(cli: Cli, tmp_path: Path) -> None:
    """The filters and what picks, with their options, in a form that can be read again; a comment says which is which."""
    chain = [{"name": "priority", "tiers": ["own"]}, {"name": "tagged", "none": ["spot"]}, "random"]
    routes = [{"methods": ["llm/*"], "strategy": chain}, {"methods": ["*"], "strategy": "random"}]
    (tmp_path / "gleitzeit.yaml").write_text(json.dumps({"routes": routes}))
    shown = cli("config", "show").out
    assert shown.splitlines()[-1] == "# llm/*: filters priority -> tagged, then random"
    assert [one["name"] for one in yaml.safe_load(shown)["routes"][0]["strategy"]] == ["priority", "tagged", "random"]
    assert yaml.safe_load(shown) == cli("config", "show", "--json").json()
    assert shown.count("#") == 1


def test_filters_are_marked(cli: Cli) -> None:
    """In the table and for programs: only they may stand before another strategy."""
    listed = {it["name"]: it["filter"] for it in cli("strategies", "--json").json()["strategies"]}
    assert (listed["tagged"], listed["least_loaded"]) == (True, False)
    rows = {line.split()[0]: line.split()[1] for line in cli("strategies").out.splitlines()[1:]}
    assert rows == {name: "yes" if filters else "-" for name, filters in listed.items()}


def test_limits_of_options_are_shown(cli: Cli) -> None:
    """As the model has them: in words for people, and as in a JSON schema for programs."""
    shown = cli("strategies", "show", "consistent_hash").out
    assert "number, above 1, at most 100 " in shown
    options = cli("strategies", "show", "consistent_hash", "--json").json()["options"]
    assert {it["name"]: it["limits"] for it in options} == {
        "key": {},
        "bound": {"exclusiveMinimum": 1, "maximum": 100},
        "prompt_chars": {"minimum": 16, "maximum": 65536},
    }


@pytest.mark.parametrize("strategy", sorted(PluginHost.load().strategies))
def test_the_example_of_a_strategy_is_a_configuration(cli: Cli, tmp_path: Path, strategy: str) -> None:
    """What is shown can be copied into a file as it stands, and names the strategy with all its options."""
    told = cli("strategies", "show", strategy, "--json").json()
    if not told["example"]:
        assert strategy == "tagged"  # of its three options one is needed, and only a person can say which
        return
    assert textwrap.indent(told["example"], "  ") in cli("strategies", "show", strategy).out
    (tmp_path / "gleitzeit.yaml").write_text(told["example"])
    ended = cli("config", "show", "--json")
    assert (ended.status, ended.err) == (0, "")
    chain = ended.json()["routes"][0]["strategy"]
    first, *rest = chain if isinstance(chain, list) else [chain]
    assert first.keys() == {"name", *(option["name"] for option in told["options"])}
    assert (first["name"], rest) == (strategy, [{"name": "least_loaded"}] if told["filter"] else [])
