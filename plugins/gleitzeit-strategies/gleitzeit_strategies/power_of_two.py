"""Two at random, and of these the one with less to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gleitzeit_core.strategies.base import Candidate, Strategy, View
from gleitzeit_strategies.drawing import draw
from gleitzeit_strategies.options import PowerOfTwoOptions

if TYPE_CHECKING:
    from gleitzeit_core.requests import Request


class PowerOfTwo(Strategy[PowerOfTwoOptions]):
    """The least loaded of a few free instances drawn at random (Mitzenmacher 2001)."""

    name = "power_of_two"

    def pick(self, request: Request, view: View) -> Candidate:  # noqa: ARG002 - every request is the same to it
        """The least `Candidate.load` of those drawn; they come in random order, so ties are broken at random."""
        return min(draw(view, self.random, self.options.choices), key=lambda candidate: candidate.load)
