"""Strategies that go by tags: `priority` picks, `locality` and `tagged` stand before others in a chain."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Final, TypeVar

from gleitzeit_core.strategies.base import WAIT, Candidate, Filter, OptionsT, View, Wait
from gleitzeit_strategies.drawing import FEW, draw
from gleitzeit_strategies.options import LocalityOptions, PriorityOptions, TaggedOptions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from gleitzeit_core.clock import Clock
    from gleitzeit_core.requests import Request

_DRAWN: Final = 16
_NOBODY: Final[Sequence[Candidate]] = ()
InTurnT = TypeVar("InTurnT", PriorityOptions, LocalityOptions)


class _ByTags(Filter[OptionsT]):
    """Groups what there is by tags, anew only when others are there than before."""

    def __init__(self, options: OptionsT, *, random: Random, clock: Clock) -> None:
        super().__init__(options, random=random, clock=clock)
        self._seen: Sequence[Candidate] = ()
        self._groups: list[Sequence[Candidate]] = []

    def reconfigure(self, options: OptionsT) -> None:
        """Go on with other options."""
        super().reconfigure(options)
        self._seen = ()

    def groups(self, view: View) -> list[Sequence[Candidate]]:
        """What `grouped` made of those that are there; one that holds them all is ``view.candidates`` itself."""
        if view.candidates is not self._seen:
            made = [group for group in self.grouped(view.candidates) if group]
            self._groups = [view.candidates if len(group) == len(view.candidates) else group for group in made]
            self._seen = view.candidates
        return self._groups

    @abstractmethod
    def grouped(self, candidates: Sequence[Candidate]) -> list[list[Candidate]]:
        """The groups in the order in which they are used."""

    def pick(self, request: Request, view: View) -> Candidate | Wait:
        """The least loaded of those kept; of many, the least loaded of some drawn at random."""
        kept = self.keep(request, view)
        part = view if kept is view.candidates else View(kept)
        if not part.has_room():
            return WAIT
        if part is view or len(kept) <= FEW:
            return part.least_loaded(self.random)
        return min(draw(part, self.random, _DRAWN), key=lambda candidate: candidate.load)


def _first_with_room(groups: list[Sequence[Candidate]], view: View) -> Sequence[Candidate]:
    """The first group in which one is free. None of them need be, when they are not all that there is."""
    for group in groups:
        if view.has_room() if group is view.candidates else any(candidate.room > 0 for candidate in group):
            return group
    return groups[-1] if groups else _NOBODY


def _with_any(candidates: Sequence[Candidate], tags: frozenset[str]) -> list[Candidate]:
    return [candidate for candidate in candidates if not tags.isdisjoint(candidate.instance.tags)]


class _InTurn(_ByTags[InTurnT]):
    """Keeps one group: the first that there is, or (`spill`) the first that has room."""

    def keep(self, request: Request, view: View) -> Sequence[Candidate]:  # noqa: ARG002 - every request is the same to it
        """The group whose turn it is."""
        groups = self.groups(view)
        if self.options.spill == "full":
            return _first_with_room(groups, view)
        return groups[0] if groups else _NOBODY


class Priority(_InTurn[PriorityOptions]):
    """Tiers of tags, the next only when the first is down or full; within a tier the least loaded.

    An instance that belongs to several tiers counts for the first of them. As a filter before another strategy it
    leaves the choice within the tier to that one.
    """

    name = "priority"

    def grouped(self, candidates: Sequence[Candidate]) -> list[list[Candidate]]:
        """By tier; those of none last, if at all."""
        left = list(candidates)
        found: list[list[Candidate]] = []
        for tier in self.options.tiers:
            wanted = frozenset(tier)
            found.append([candidate for candidate in left if wanted <= candidate.instance.tags])
            left = [candidate for candidate in left if not wanted <= candidate.instance.tags]
        return [*found, left] if self.options.rest else found


class Locality(_InTurn[LocalityOptions]):
    """Near instances first; those further away when too few near ones are up, or (`spill`) none has room."""

    name = "locality"

    def grouped(self, candidates: Sequence[Candidate]) -> list[list[Candidate]]:
        """Each step with all that is nearer in it; the first is enough already."""
        tags, found = self.options.tags, list[list[Candidate]]()
        for step in range(1, len(tags) + 1):
            kept = _with_any(candidates, frozenset(tags[:step]))
            if len(kept) >= self.options.enough:
                found.append(kept)
        if self.options.strict:
            # Too few are better than none.
            return found or [_with_any(candidates, frozenset(tags))]
        return [*found, list(candidates)]


class Tagged(_ByTags[TaggedOptions]):
    """Only instances with the right tags. With none of them up, requests fail, or (not `strict`) any will do."""

    name = "tagged"

    def keep(self, request: Request, view: View) -> Sequence[Candidate]:  # noqa: ARG002 - every request is the same to it
        """Those with the right tags."""
        groups = self.groups(view)
        return groups[0] if groups else _NOBODY

    def grouped(self, candidates: Sequence[Candidate]) -> list[list[Candidate]]:
        """One group."""
        wanted, forbidden = frozenset(self.options.all), frozenset(self.options.none)
        either = frozenset(self.options.any)
        kept = _with_any(candidates, either) if either else list(candidates)
        kept = [c for c in kept if wanted <= c.instance.tags and forbidden.isdisjoint(c.instance.tags)]
        return [kept] if kept or self.options.strict else [list(candidates)]
