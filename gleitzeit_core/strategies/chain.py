"""Several strategies as one: filters narrow down what there is, and the last picks from what they leave."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict

from gleitzeit_core.strategies.base import WAIT, Candidate, Filter, Strategy, View, Wait

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gleitzeit_core.requests import Outcome, Request

logger = logging.getLogger(__name__)


class ChainOptions(BaseModel):
    """The options of a chain's members, in their order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    members: tuple[BaseModel, ...]


class Chain(Strategy[ChainOptions]):
    """A strategy made of others, all for the same route and capability set.

    With nothing free among what a filter keeps, there is a wait, although something else may be free.

    Args:
        filters: Narrow down what there is, one after the other; each sees what those before it kept.
        picker: Chooses from what is left.

    Raises:
        ValueError: One of `filters` is none.
    """

    name = "chain"
    narrows = True

    def __init__(self, filters: Sequence[Strategy[Any]], picker: Strategy[Any]) -> None:
        for one in filters:
            if not isinstance(one, Filter):
                raise ValueError(f"{one.name} picks and does not filter: only the last of a chain may do that")  # noqa: TRY004 - a configuration's fault
        self.filters: tuple[Filter[Any], ...] = tuple(one for one in filters if isinstance(one, Filter))
        self.picker = picker
        options = ChainOptions(members=tuple(member.options for member in self.members))
        super().__init__(options, random=picker.random, clock=picker.clock)

    def __repr__(self) -> str:
        """Its members in their order."""
        return f"<Chain {self}>"

    def __str__(self) -> str:
        """The names of its members in their order."""
        return " -> ".join(map(str, self.members))

    @classmethod
    def of(cls, members: Sequence[Strategy[Any]]) -> Strategy[Any] | Self:
        """The chain of `members`, at least one, the last of which picks; one alone is itself.

        Raises:
            ValueError: One that is not the last does not filter.
        """
        return members[0] if len(members) == 1 else cls(members[:-1], members[-1])

    @property
    def members(self) -> tuple[Strategy[Any], ...]:
        """The filters, then the picker."""
        return (*self.filters, self.picker)

    def pick(self, request: Request, view: View) -> Candidate | Wait:
        """What the picker picks from what the filters keep; `WAIT` when none of that is free."""
        for one in self.filters:
            kept = one.keep(request, view)
            # A view of the whole pool is quicker to choose from than a list of the same: keep it while it serves.
            if kept is not view.candidates:
                view = View(kept)
                if not view.has_room():
                    return WAIT
        return self.picker.pick(request, view)

    def considers(self, request: Request, view: View) -> bool:
        """Whether the picker considers any of what the filters keep."""
        for one in self.filters:
            view = View(one.keep(request, view))
        return bool(view.candidates) and self.picker.considers(request, view)

    def queued(self, waiting: int) -> None:
        """Told to every member."""
        super().queued(waiting)
        for member in self.members:
            member.queued(waiting)

    def started(self, request: Request, candidate: Candidate) -> None:
        """Told to every member."""
        self._tell(lambda member: member.started(request, candidate))

    def finished(self, request: Request, candidate: Candidate, outcome: Outcome) -> None:
        """Told to every member."""
        self._tell(lambda member: member.finished(request, candidate, outcome))

    def _tell(self, call: Callable[[Strategy[Any]], None]) -> None:
        # A mistake of one must not keep the news from those after it.
        for member in self.members:
            try:
                call(member)
            except Exception:
                logger.exception("strategy %r failed", member.name)

    def reconfigure(self, options: ChainOptions) -> None:
        """Each member goes on with its own part of `options`."""
        for member, its in zip(self.members, options.members, strict=True):
            if its != member.options:
                member.reconfigure(its)
        super().reconfigure(options)

    def resembles(self, other: Strategy[Any]) -> bool:
        """Whether `other` is a chain of the same strategies in the same order."""
        if not isinstance(other, Chain) or len(other.members) != len(self.members):
            return False
        return all(mine.resembles(its) for mine, its in zip(self.members, other.members, strict=True))
