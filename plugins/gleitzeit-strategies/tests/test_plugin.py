from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from pydantic import ValidationError

from gleitzeit_core.plugins import WELL_KNOWN, PluginHost
from gleitzeit_core.strategies.base import Filter, Strategy
from gleitzeit_core.testing.clock import ManualClock
from gleitzeit_strategies.options import (
    AdaptiveOptions,
    ConsistentHashOptions,
    EwmaOptions,
    LocalityOptions,
    ModelAffinityOptions,
    PowerOfTwoOptions,
    PriorityOptions,
    TaggedOptions,
)
from gleitzeit_strategies.plugin import gleitzeit_register_strategies

if TYPE_CHECKING:
    from pydantic import BaseModel

    from gleitzeit_core.hookspecs import StrategyType

FOLDER = Path(__file__).parents[1]
TYPES = gleitzeit_register_strategies()
NEEDED: dict[str, dict[str, Any]] = {
    "priority": {"tiers": ["a"]},
    "locality": {"tags": ["a"]},
    "tagged": {"any": ["a"]},
}
each_type = pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)


@each_type
def test_it_is_what_its_descriptor_says(kind: StrategyType) -> None:
    """The class has the name, takes the options, and is a filter where that is said."""
    host = PluginHost.load()
    target, options = host.load_target(host.strategy_type(kind.name)), host.load_options(kind)
    assert host.strategy_type(kind.name) == kind
    assert issubclass(target, Strategy)
    assert target.name == kind.name
    assert issubclass(target, Filter) is kind.filters
    made = target(options(**NEEDED.get(kind.name, {})), random=None, clock=ManualClock())
    assert made.options == options(**NEEDED.get(kind.name, {}))


@each_type
def test_it_says_when_to_use_it(kind: StrategyType) -> None:
    """Its page begins so; every option is described there or in its model, and in the README."""
    readme = (FOLDER / "README.md").read_text()
    assert kind.page.startswith("Use it ")
    assert f"| `{kind.name}`" in readme
    for name, field in PluginHost.load().load_options(kind).model_fields.items():
        assert field.description
        assert f"`{name}`" in readme


@each_type
def test_it_can_be_had_by_name(kind: StrategyType) -> None:
    """Where the plugin is missing, the core says where it is."""
    assert WELL_KNOWN["strategy", kind.name] == ("plugins/gleitzeit-strategies",)


def test_all_that_is_well_known_is_there() -> None:
    """No name leads nowhere."""
    assert {name for kind, name in WELL_KNOWN if kind == "strategy"} == {kind.name for kind in TYPES}


@pytest.mark.parametrize(
    ("model", "given"),
    [
        (PowerOfTwoOptions, {"choices": 1}),
        (PowerOfTwoOptions, {"choises": 2}),
        (EwmaOptions, {"time_constant_s": 0}),
        (EwmaOptions, {"time_constant_s": float("nan")}),
        (AdaptiveOptions, {"choices": 0}),
        (ConsistentHashOptions, {"key": []}),
        (ConsistentHashOptions, {"key": ["header"]}),
        (ConsistentHashOptions, {"bound": 1.0}),
        (ConsistentHashOptions, {"bound": float("inf")}),
        (ConsistentHashOptions, {"prompt_chars": 0}),
        (ModelAffinityOptions, {"load_s": 0}),
        (ModelAffinityOptions, {"load_bytes_per_s": float("inf")}),
        (ModelAffinityOptions, {"horizon_s": -1}),
        (PriorityOptions, {}),
        (PriorityOptions, {"tiers": []}),
        (PriorityOptions, {"tiers": [[""]]}),
        (PriorityOptions, {"tiers": ["a"], "spill": "never"}),
        (LocalityOptions, {}),
        (LocalityOptions, {"tags": []}),
        (LocalityOptions, {"tags": ["a"], "enough": 0}),
        (TaggedOptions, {}),
        (TaggedOptions, {"all": []}),
    ],
)
def test_options_have_limits(model: type[BaseModel], given: dict[str, Any]) -> None:
    """What makes no sense is refused when the configuration is read."""
    with pytest.raises(ValidationError):
        model(**given)


def test_one_tag_may_stand_alone() -> None:
    """Without the brackets of a list."""
    assert PriorityOptions(tiers=["own", ["cloud", "cheap"]]).tiers == [["own"], ["cloud", "cheap"]]  # type: ignore[list-item] # made a list
    assert LocalityOptions(tags="zone").tags == ["zone"]  # type: ignore[arg-type] # made a list
    assert ConsistentHashOptions(key="user").key == ["user"]  # type: ignore[arg-type] # made a list


def test_the_examples_of_the_readme_are_options() -> None:
    """Every strategy in its configuration is there and takes what it is given."""
    example = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)[0])
    host = PluginHost.load()
    for route in example["routes"]:
        given = route["strategy"] if isinstance(route["strategy"], list) else [route["strategy"]]
        for one in given:
            named = {"name": one} if isinstance(one, str) else dict(one)
            host.load_options(host.strategy_type(named.pop("name")))(**named)
