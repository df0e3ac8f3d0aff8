"""Choosing among thousands without looking at all of them: a few that are free, drawn at random.

Two random choices are exponentially better than one, and more bring little (Mitzenmacher, "The power of two choices in
randomized load balancing", 2001).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from random import Random

    from gleitzeit_core.strategies.base import Candidate, View

# Where there are no more, and drawing did not find enough, all are looked at.
FEW: Final = 64
_DRAWS_EACH: Final = 4


def draw(view: View, random: Random, count: int) -> list[Candidate]:
    """Up to `count` different candidates with room, each set of them as likely, in random order; at least one.

    With nearly all of many busy it may find fewer; then the least loaded of all is among them. The time it takes does
    not grow with the number of candidates in the pool's own views.
    """
    candidates = view.candidates
    size = len(candidates)
    if count >= size:
        few = list(view.free)
        random.shuffle(few)
        return few
    found: dict[int, Candidate] = {}
    for _ in range(_DRAWS_EACH * count):
        place = int(random.random() * size)
        if candidates[place].room > 0:
            found[place] = candidates[place]
            if len(found) == count:
                return list(found.values())
    if size <= FEW:
        free = view.free
        return random.sample(free, min(count, len(free)))
    drawn = list(found.values())
    least = view.least_loaded(random)
    return drawn if least in drawn else [*drawn, least]
