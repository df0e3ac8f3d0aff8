"""True and false are no numbers, though pydantic takes them for 1 and 0."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
from annotated_types import Gt
from pydantic import BaseModel, Field

from gleitzeit_core.config_messages import validated
from gleitzeit_core.errors import InvalidRequest
from gleitzeit_core.needs import checked, positive

if TYPE_CHECKING:
    from collections.abc import Callable


class Wheel(BaseModel):
    """One of several."""

    size: float = 1.0


class Cart(BaseModel):
    """All the ways to say that something is a number, and what looks like it."""

    whole: int = 1
    real: float | None = None
    bounded: Annotated[float, Gt(0)] | None = None
    renamed: int = Field(default=1, validation_alias="called")
    wheels: list[Wheel | str] = []
    prices: dict[str, float] = {}
    pair: tuple[int, str] = (1, "")
    flag: bool = False
    either: int | bool = 1
    off: float | Literal[False] = 1.0
    anything: Any = None
    several: dict[str, int | list[Any]] = {}


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ({"whole": True}, "whole"),
        ({"real": False}, "real"),
        ({"bounded": False}, "bounded"),
        ({"called": True}, "called"),
        ({"wheels": ["a", {"size": True}]}, "wheels[1].size"),
        ({"prices": {"a": 1.5, "b": True}}, "prices.b"),
        ({"pair": [True, "a"]}, "pair[0]"),
        ({"off": True}, "off"),
        ({"several": {"a": True}}, "several.a"),
    ],
)
def test_a_number_is_neither_true_nor_false(data: dict[str, object], path: str) -> None:
    """It is one mistake, at its place."""
    found, problems = validated(Cart, data)
    assert found is None
    assert [str(problem) for problem in problems] == [f"{path}: must be a number, not true or false"]


@pytest.mark.parametrize(
    ("data", "value"),
    [
        ({"whole": "5"}, 5),
        ({"real": "0.5"}, 0.5),
        ({"real": None}, None),
        ({"flag": True}, True),
        ({"flag": 1}, True),
        ({"either": True}, True),
        ({"off": False}, False),
        ({"anything": [{"a": True}]}, [{"a": True}]),
        ({"several": {"a": [True]}}, {"a": [True]}),
    ],
)
def test_all_else_is_as_it_was(data: dict[str, object], value: object) -> None:
    """Numbers in quotes are numbers, and true is true where that may stand."""
    found, problems = validated(Cart, data)
    assert problems == []
    (name,) = data
    assert getattr(found, name) == value
    assert type(getattr(found, name)) is type(value)


def test_it_is_told_with_all_the_others(problems: Callable[..., list[str]]) -> None:
    """With its line; a variable of the environment is named."""
    text = """
routes:
  - methods: ["*"]
    max_queue: true
    hedge: {budget: true}
    max_tries: 0
"""
    assert sorted(problems(text, GLEITZEIT_MAINS__PORT="true")) == [
        "GLEITZEIT_MAINS__PORT: mains.port: must be a number, not true or false",
        "c.yaml:4: routes[0].max_queue: must be a number, not true or false",
        "c.yaml:5: routes[0].hedge.budget: must be a number, not true or false",
        "c.yaml:6: routes[0].max_tries: must be at least 1, not 0",
    ]


def test_callers_hear_of_it_too() -> None:
    """Who adds something while all is running, or asks for so many seconds."""
    with pytest.raises(InvalidRequest, match=r"^size: must be a number, not true or false$") as caught:
        checked(Wheel, {"size": True})
    assert caught.value.param == "size"
    with pytest.raises(InvalidRequest, match=r"^ttl_s must be a number above 0, not True$"):
        positive("ttl_s", True)  # noqa: FBT003 - that is the point


def test_what_is_endlessly_deep_is_not_followed() -> None:
    """Only so far as the model knows what is there."""
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    assert validated(Cart, {"anything": deep})[1] == []
