"""Where an answer is expected first, loading a model and what that puts out of memory counted in."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gleitzeit_core.strategies.base import Candidate, Strategy, View, Wait
from gleitzeit_strategies.board import Board
from gleitzeit_strategies.drawing import draw
from gleitzeit_strategies.options import ModelAffinityOptions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from gleitzeit_core.clock import Clock
    from gleitzeit_core.requests import Outcome, Request

# Candidates whose completion is estimated for each pick: those with the model, all others while none of those is free,
# and all others beside one that is.
_LOOKED_AT: Final = 8
_BESIDE: Final = 4
_AGAIN_MIN_S: Final = 0.1
_AGAIN_MAX_S: Final = 30.0
_WAITING_MAX: Final = 4096
_ONE_MOMENT_S: Final = 0.05
# The machine asks no more of a queue than these, and so no more can be told apart.
_AMONG_FIRST: Final = 8


@dataclass(frozen=True, slots=True)
class _Option:
    """A free candidate, when it would be done, and how much longer others need what it would have to put out."""

    candidate: Candidate
    done_s: float
    held_s: float


def _done(option: _Option) -> tuple[float, float]:
    return option.held_s, option.done_s


def _between(seconds: float) -> float:
    return min(max(seconds, _AGAIN_MIN_S), _AGAIN_MAX_S)


class ModelAffinity(Strategy[ModelAffinityOptions]):
    """The earliest estimated completion: the work ahead, a cold load, the request itself, and the reloads it causes.

    While an instance that has the model loaded is busy, and the wait for it is estimated shorter than a cold load
    elsewhere, the answer is to wait. That counts those that wait before it, at the speed learned; the length of the
    queue alone never makes it load a model anew. A request that has waited for twice what it was to take, and a cold
    load more, takes what is free: none starves behind an instance that hangs, nor behind a wrong estimate.
    """

    name = "model_affinity"

    def __init__(self, options: ModelAffinityOptions, *, random: Random, clock: Clock) -> None:
        super().__init__(options, random=random, clock=clock)
        self.board = Board.of(clock)
        self._model = ""
        self._seen: Sequence[Candidate] = ()
        self._here: dict[str, Candidate] = {}
        # Which of them have which model, and of which version of the board that is.
        self._warm_of: tuple[str, int, View] | None = None
        # Those that were told to wait since the first of the queue was asked last.
        self._round: set[str] = set()
        self._asked_at = clock.monotonic()
        # Until when each that waits does so, on the monotonic clock.
        self._patience: OrderedDict[str, float] = OrderedDict()

    def pick(self, request: Request, view: View) -> Candidate | Wait:
        """The free one with the earliest estimated completion, or a wait for one that is busy and would be earlier."""
        now, model = self.clock.monotonic(), request.requirements.model
        self.board.at(now)
        if view.candidates is not self._seen:
            self._meet(view)
        if not model:
            return min(self._options(request, model, draw(view, self.random, _LOOKED_AT), now), key=_done).candidate
        self._serves(model)
        warm = self._warm(view, model)
        drawn = draw(warm, self.random, _LOOKED_AT) if warm.has_room() else []
        ready = [candidate for candidate in drawn if not self._loading_s(candidate, model, now)]
        others = [] if warm is view else draw(view, self.random, _BESIDE if ready else _LOOKED_AT)
        free = self._options(request, model, [*drawn, *others], now)
        best = min(free, key=_done)
        if ready or (best.held_s == 0 and not warm.candidates):
            return best.candidate
        if best.held_s:
            return Wait(again_s=_between(best.held_s))
        return self._or_wait(request, model, warm.candidates, best, now)

    def queued(self, waiting: int) -> None:
        """What is loaded for those who wait is left to them for a while, so others must know of them."""
        super().queued(waiting)
        if self._model:
            self.board.holders(self._model).queues[self] = waiting

    def _serves(self, model: str) -> None:
        """All its requests are for the same model, of which it hears with the first."""
        if self._model != model:
            self._model = model
            self.queued(self.waiting)

    def started(self, request: Request, candidate: Candidate) -> None:
        """Its instance has it now, and loads its model if need be."""
        self._patience.pop(request.id, None)
        self._round.discard(request.id)
        self.board.at(self.clock.monotonic())
        self.board.started(request, candidate.instance, request.requirements.model, self.options)

    def finished(self, request: Request, candidate: Candidate, outcome: Outcome) -> None:
        """Learn from it."""
        self.board.at(self.clock.monotonic())
        self.board.finished(request, candidate.instance, outcome, self.options)

    # -- estimates ---------------------------------------------------------------------------------------------

    def _options(self, request: Request, model: str, free: list[Candidate], now: float) -> list[_Option]:
        """What could be done now, in the same order."""
        return [self._option(request, model, candidate, now) for candidate in free]

    def _option(self, request: Request, model: str, candidate: Candidate, now: float) -> _Option:
        instance, board, held_s = candidate.instance, self.board, 0.0
        place = board.see(instance)
        ahead_s = sum(running.left_s(now) for running in place.running.values()) / instance.max_concurrent
        done_s = ahead_s + board.own_s(instance, model, request.cost, self.options)
        if model and model not in place.resident:
            blocked_s, later_s = board.eviction_s(instance, place, model, self.options)
            done_s += board.load_s(instance, model, self.options) + blocked_s + later_s
            held_s = board.held_s(instance, place, model)
        elif model:
            done_s += self._loading_s(candidate, model, now)
        return _Option(candidate, done_s * board.burden(instance, self.options), held_s)

    def _loading_s(self, candidate: Candidate, model: str, now: float) -> float:
        """How much longer it loads the model; 0 when it does not."""
        running = self.board.see(candidate.instance).running.values()
        return max((one.load_left_s(now) for one in running if one.model == model), default=0.0)

    def _or_wait(
        self, request: Request, model: str, warm: Sequence[Candidate], best: _Option, now: float
    ) -> Candidate | Wait:
        """`best`, where the model must be loaded first, or a wait for one of `warm` that is busy and has it."""
        looked = warm if len(warm) <= _LOOKED_AT else self.random.sample(warm, _LOOKED_AT)
        looked = [candidate for candidate in looked if candidate.room <= 0]
        if not looked:
            # All that it could wait for is the end of a load, and it can as well be there then.
            return best.candidate
        own_s, each_s = self._own_s(request, model, looked), self._each_s(request, model, looked, len(warm))
        before, next_s = self._before(request, now), self._next_s(looked, len(warm), now)
        if next_s is None:
            next_s = own_s
        wait_s = next_s + before * each_s
        # 1. It would wait longer than a load takes.
        if wait_s + own_s >= best.done_s:
            return best.candidate
        # 2. Those at the end of the queue would; one not at its head makes room for them.
        behind = before + 1 >= min(self.waiting, _AMONG_FIRST)
        if behind and next_s + self.waiting * each_s >= best.done_s:
            return best.candidate
        return self._patiently(request, best, wait_s, now)

    def _own_s(self, request: Request, model: str, some: Sequence[Candidate]) -> float:
        """How long it takes by itself on one of these, on average."""
        cost, options = request.cost, self.options
        return sum(self.board.own_s(candidate.instance, model, cost, options) for candidate in some) / len(some)

    def _each_s(self, request: Request, model: str, looked: Sequence[Candidate], count: int) -> float:
        """How often one of `count` instances, of which some were looked at, ends a request."""
        slots = sum(candidate.instance.max_concurrent for candidate in looked) * count / len(looked)
        return self._own_s(request, model, looked) / slots

    def _next_s(self, looked: Sequence[Candidate], count: int, now: float) -> float | None:
        """When the next of `count` busy instances, of which some were looked at, has a slot; None: nobody knows."""
        lefts = [
            max(running.left_s(now), running.load_left_s(now))
            for candidate in looked
            for running in self.board.see(candidate.instance).running.values()
        ]
        return min(lefts) * len(looked) / count if lefts else None

    def _before(self, request: Request, now: float) -> int:
        """How many wait before it. The queue is asked from its beginning each time, at one moment."""
        if request.id in self._round or now > self._asked_at + _ONE_MOMENT_S:
            self._round.clear()
        self._asked_at = now
        return len(self._round)

    def _patiently(self, request: Request, best: _Option, wait_s: float, now: float) -> Candidate | Wait:
        until = self._patience.get(request.id)
        if until is None:
            until = self._patience[request.id] = now + 2 * wait_s + best.done_s
            if len(self._patience) > _WAITING_MAX:
                self._patience.popitem(last=False)
        if now >= until:
            return best.candidate
        self._round.add(request.id)
        if len(self._round) > _WAITING_MAX:
            self._round.clear()
        return Wait(again_s=_between(min(wait_s, until - now)))

    # -- who is there ------------------------------------------------------------------------------------------

    def _meet(self, view: View) -> None:
        """Others are there than before, or something about them has changed."""
        here = {candidate.instance.id: candidate for candidate in view.candidates}
        if type(view) is not View:
            # A plain view may be a part of what there is, for one request only.
            for name in self._here.keys() - here.keys():
                self.board.gone(name)
        for candidate in view.candidates:
            self.board.see(candidate.instance)
        self._seen, self._here = view.candidates, here
        self._warm_of = None

    def _warm(self, view: View, model: str) -> View:
        """Those that have the model in memory, or are loading it; found anew only when that changes."""
        holders = self.board.holders(model)
        if self._warm_of is None or self._warm_of[:2] != (model, holders.version):
            found = [candidate for name, candidate in self._here.items() if name in holders.ids]
            warm = view if len(found) == len(view.candidates) else View(found)
            self._warm_of = (model, holders.version, warm)
        return self._warm_of[2]
