"""The guard: standard tests can neither be lost nor be replaced without a reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.strategies.base import WAIT, NoOptions, Strategy
from gleitzeit_core.strategies.simple import RandomChoice
from gleitzeit_core.testing import conformance
from gleitzeit_core.testing.conformance import Conformance, StrategyConformance, standard_tests

if TYPE_CHECKING:
    from random import Random

    from gleitzeit_core.clock import Clock
    from gleitzeit_core.requests import Request
    from gleitzeit_core.strategies.base import Candidate, View, Wait


class Good(StrategyConformance):
    """Not collected by itself: its name does not begin with Test."""

    kind: type[Strategy[Any]] = RandomChoice

    def make_strategy(self, random: Random, clock: Clock) -> Strategy[Any]:
        """As set."""
        return self.kind(NoOptions(), random=random, clock=clock)

    def test_of_its_own(self) -> None:
        """Authors may add tests."""


class Deleted(Good):
    """One is gone."""

    test_it_picks_what_is_free = None  # type: ignore[assignment]


class Replaced(Good):
    """One does nothing."""

    def test_it_picks_what_is_free(self) -> None:
        """Nothing."""


class Unreasoned(Good):
    """One is expected to fail, nobody says why."""

    @pytest.mark.xfail
    def test_it_picks_what_is_free(self) -> None:
        """It fails."""


class Reasoned(Good):
    """One is expected to fail, for a reason."""

    @pytest.mark.xfail(reason="it never waits")
    def test_it_picks_what_is_free(self) -> None:
        """It fails."""
        super().test_it_picks_what_is_free()


@pytest.mark.parametrize("kind", [Good, Reasoned])
def test_the_guard_lets_pass_what_is_complete(kind: type[Good]) -> None:
    """All standard tests there, or explained."""
    kind().test_no_standard_test_is_left_out()


@pytest.mark.parametrize("kind", [Deleted, Replaced, Unreasoned])
def test_the_guard_notices_what_is_missing(kind: type[Good]) -> None:
    """By its name."""
    with pytest.raises(AssertionError, match=rf"{kind.__name__}\.test_it_picks_what_is_free replaces a standard test"):
        kind().test_no_standard_test_is_left_out()


def test_every_standard_test_says_what_must_hold() -> None:
    """A failing one explains itself; and each class has some."""
    for name in (
        "HubConformance",
        "SupplyConformance",
        "ProviderConformance",
        "StrategyConformance",
        "StoreConformance",
    ):
        kind = getattr(conformance, name)
        tests = standard_tests(kind)
        assert issubclass(kind, Conformance)
        assert len(tests) > 5
        assert all(test.__doc__ for test in tests.values())


class Busy(RandomChoice):
    """Picks what has no room."""

    def pick(self, request: Request, view: View) -> Candidate | Wait:
        """The fullest."""
        del request
        return min(view.candidates, key=lambda candidate: candidate.room)


class Idle(RandomChoice):
    """Never picks."""

    def pick(self, request: Request, view: View) -> Candidate | Wait:
        """Wait."""
        del request, view
        return WAIT


class Moody(RandomChoice):
    """Takes its chances from elsewhere."""

    count = 0

    def pick(self, request: Request, view: View) -> Candidate | Wait:
        """In an order that goes on from one object to the next."""
        del request
        Moody.count += 1
        return view.free[Moody.count**2 % 7 % len(view.free)]


@pytest.mark.parametrize(
    ("strategy", "test"),
    [
        (Busy, "test_it_picks_what_is_free"),
        (Idle, "test_a_single_instance_is_used"),
        (Idle, "test_equals_share_the_work"),
        (Moody, "test_it_decides_the_same_way_again"),
    ],
)
def test_a_bad_strategy_does_not_pass(strategy: type[Strategy[Any]], test: str) -> None:
    """The standard tests can fail."""
    kind = Good()
    kind.kind = strategy
    with pytest.raises(Exception):  # noqa: B017, PT011 - whichever way it fails
        getattr(kind, test)()
