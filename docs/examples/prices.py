"""A filter and a strategy of your own: what costs too much is left out, and the cheapest of the rest is waited for.

Prices are tags such as ``price=2`` on the instances, so they work with any hub:

    plugins: {files: [./prices.py]}
    routes:
      - {methods: ["llm/*"], strategy: [{name: affordable, most: 3}, {name: cheapest, patience_s: 2}]}
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from gleitzeit_core.hookspecs import StrategyType, hookimpl
from gleitzeit_core.strategies.base import Candidate, Filter, Strategy, View, Wait

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from gleitzeit_core.clock import Clock
    from gleitzeit_core.requests import Request


class AffordableOptions(BaseModel):
    """Options of the filter."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    most: float = Field(1.0, ge=0, description="What costs more than this is left out.")


class CheapestOptions(BaseModel):
    """Options of the strategy."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    patience_s: float = Field(1.0, ge=0, description="For so long the cheapest is waited for while it is busy.")


def price(candidate: Candidate) -> float:
    """As its tag says; 0 without one."""
    tags = (tag for tag in candidate.instance.tags if tag.startswith("price="))
    return float(next(tags, "price=0").removeprefix("price="))


class Affordable(Filter[AffordableOptions]):
    """Keeps what does not cost too much. Alone it picks the least loaded of that."""

    name = "affordable"

    def keep(self, request: Request, view: View) -> Sequence[Candidate]:  # noqa: ARG002 - of any request
        return [candidate for candidate in view.candidates if price(candidate) <= self.options.most]


class Cheapest(Strategy[CheapestOptions]):
    """The cheapest; when it has been busy for too long, the cheapest that is free."""

    name = "cheapest"

    def __init__(self, options: CheapestOptions, *, random: Random, clock: Clock) -> None:
        super().__init__(options, random=random, clock=clock)
        self._busy_since: float | None = None

    def pick(self, request: Request, view: View) -> Candidate | Wait:  # noqa: ARG002 - for any request
        best, now = min(view.candidates, key=price), self.clock.monotonic()
        if best.room > 0:
            self._busy_since = None
            return best
        self._busy_since = now if self._busy_since is None else self._busy_since
        left_s = self._busy_since + self.options.patience_s - now
        # Nothing may happen until then, so it says itself when to ask again.
        return Wait(again_s=left_s) if left_s > 0 else min(view.free, key=price)

    def reconfigure(self, options: CheapestOptions) -> None:
        """Other options: patience begins anew, which is all there is to it."""
        super().reconfigure(options)
        self._busy_since = None


@hookimpl
def gleitzeit_register_strategies() -> list[StrategyType]:
    """What this file adds."""
    return [
        StrategyType(
            name="affordable",
            target=f"{__name__}:Affordable",
            options=f"{__name__}:AffordableOptions",
            summary="only instances that do not cost too much",
            page="Use it before another strategy, to stay within a budget.",
            filters=True,
        ),
        StrategyType(
            name="cheapest",
            target=f"{__name__}:Cheapest",
            options=f"{__name__}:CheapestOptions",
            summary="the instance with the lowest price",
            page="Use it when money counts more than time.",
        ),
    ]
