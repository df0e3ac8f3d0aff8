"""What `model_affinity` knows of models and instances, shared by all its strategies on one machine.

A strategy serves one route and one capability set, and so one model; what is in an instance's memory, and what loading
one model there costs the others, concerns all of them. They have their clock in common: there is one board per clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final
from weakref import WeakKeyDictionary

from gleitzeit_core.requests import Result
from gleitzeit_strategies.learned import Lately, Ratio, Successes
from gleitzeit_strategies.places import Place, Running, size_bytes

if TYPE_CHECKING:
    from gleitzeit_core.clock import Clock
    from gleitzeit_core.requests import Outcome, Request
    from gleitzeit_core.resources import ResourceInstance
    from gleitzeit_strategies.options import ModelAffinityOptions

_INSTANCES_MAX: Final = 16_384
_PAIRS_MAX: Final = 65_536
_MODELS_MAX: Final = 4_096
# What a request of usual size takes before anything was measured.
_USUAL_S: Final = 1.0
# A model that others wait for stays for so many times the time that its load took, so that loading takes a third of all
# time at most, however many models are wanted at once.
_TURN: Final = 2.0
# How many observations the next best knowledge counts for.
_BARELY, _LITTLE, _HALF, _ONE = 1e-6, 0.1, 0.5, 1.0


class Holders:
    """The instances with one model in memory; `version` grows with every change. And the queues for the model."""

    __slots__ = ("ids", "queues", "version")

    def __init__(self) -> None:
        self.ids: set[str] = set()
        self.version = 0
        # How many wait, by who keeps them: a strategy that is replaced takes its queue along.
        self.queues: WeakKeyDictionary[Any, int] = WeakKeyDictionary()

    @property
    def waiting(self) -> int:
        """Requests that wait for the model."""
        return sum(self.queues.values())


class Board:
    """See the module's text. Times in seconds.

    Args:
        now: On the monotonic clock.
    """

    _boards: ClassVar[WeakKeyDictionary[Clock, Board]] = WeakKeyDictionary()

    def __init__(self, now: float) -> None:
        self._now = now
        self.places: Lately[str, Place] = Lately(Place, _INSTANCES_MAX)
        ratio = self._ratio
        # Seconds over cost, for a model on an instance and for a model anywhere (per weight).
        self._pace: Lately[tuple[str, str], Ratio] = Lately(ratio, _PAIRS_MAX)
        self._model_pace: Lately[str, Ratio] = Lately(ratio, _MODELS_MAX)
        # Seconds over loads, likewise; and over bytes, for models that were never loaded.
        self._load: Lately[tuple[str, str], Ratio] = Lately(ratio, _PAIRS_MAX)
        self._model_load: Lately[str, Ratio] = Lately(ratio, _MODELS_MAX)
        self._by_size = ratio()
        # Seconds to the first output when the model is there, by model and whether it streams.
        self._first: Lately[tuple[str, bool], Ratio] = Lately(ratio, 2 * _MODELS_MAX)
        self._successes: Lately[str, Successes] = Lately(lambda: Successes(self._now), _INSTANCES_MAX)
        self._wanted: Lately[str, Ratio] = Lately(ratio, _MODELS_MAX)
        self._holders: Lately[str, Holders] = Lately(Holders, _MODELS_MAX)

    @classmethod
    def of(cls, clock: Clock) -> Board:
        """The board of all that have this clock."""
        try:
            return cls._boards.setdefault(clock, cls(clock.monotonic()))
        except TypeError:
            # A clock that no weak reference can be made to: each strategy learns for itself.
            return cls(clock.monotonic())

    def _ratio(self) -> Ratio:
        return Ratio(self._now)

    # -- instances ---------------------------------------------------------------------------------------------

    def see(self, instance: ResourceInstance) -> Place:
        """What is known of an instance, brought up to date."""
        place = self.places[instance.id]
        if instance is not place.seen:
            before = set() if place.seen is None else set(place.resident)
            place.see(instance, self._now)
            self._held(instance.id, before, set(place.resident))
        return place

    def gone(self, instance_id: str) -> None:
        """An instance serves no more, for now: what it has in memory is of no use."""
        place = self.places[instance_id]
        self._held(instance_id, set(place.resident), set())
        # It is looked at anew when it is back.
        place.seen = None

    def _held(self, instance_id: str, before: set[str], after: set[str]) -> None:
        for model in before ^ after:
            holders = self._holders[model]
            holders.version += 1
            if model in after:
                holders.ids.add(instance_id)
                if len(holders.ids) > _INSTANCES_MAX:
                    holders.ids.pop()
            else:
                holders.ids.discard(instance_id)

    def holders(self, model: str) -> Holders:
        """The instances that have a model in memory, or are loading it."""
        return self._holders[model]

    # -- estimates ---------------------------------------------------------------------------------------------

    def own_s(self, instance: ResourceInstance, model: str, cost: float, options: ModelAffinityOptions) -> float:
        """How long a request takes there once its model is loaded."""
        now, tau = self._now, options.time_constant_s
        anywhere = self._model_pace[model].shrunk(_USUAL_S, _LITTLE, now, tau) / instance.weight
        return cost * self._pace[instance.id, model].shrunk(anywhere, _ONE, now, tau)

    def burden(self, instance: ResourceInstance, options: ModelAffinityOptions) -> float:
        """By how much it counts as slower than it is, for its failures."""
        return self._successes[instance.id].burden(self._now, options.time_constant_s)

    def load_s(self, instance: ResourceInstance, model: str, options: ModelAffinityOptions) -> float:
        """How long it takes to load a model there: as measured there, or anywhere, or else by its size."""
        now, tau = self._now, options.time_constant_s
        size = size_bytes(instance, model)
        by_size = (
            size * self._by_size.shrunk(1.0 / options.load_bytes_per_s, _ONE, now, tau) if size else options.load_s
        )
        anywhere = self._model_load[model].shrunk(by_size, _LITTLE, now, tau)
        return self._load[instance.id, model].shrunk(anywhere, _HALF, now, tau)

    def eviction_s(
        self, instance: ResourceInstance, place: Place, model: str, options: ModelAffinityOptions
    ) -> tuple[float, float]:
        """What making room for `model` costs.

        Returns:
            How long the requests still take that use what must go; and what it costs later: the reload, by how likely
            the model is wanted again here within `ModelAffinityOptions.horizon_s`, and the time that those need who
            wait for it and lose the slots.
        """
        blocked_s, later_s = 0.0, 0.0
        for evicted in place.evicted_by(instance, model):
            using = [running.left_s(self._now) for running in place.running.values() if running.model == evicted]
            blocked_s = max(blocked_s, *using, 0.0)
            holders = self._holders[evicted]
            count = max(len(holders.ids), 1)
            wanted = self._wanted[evicted].count(self._now, options.horizon_s) if options.horizon_s else 0.0
            likely = 1.0 if using or holders.waiting else min(1.0, wanted / count)
            later_s += likely * self.load_s(instance, evicted, options)
            if holders.waiting:
                each_s = self.own_s(instance, evicted, 1.0, options) / (count * instance.max_concurrent)
                later_s += holders.waiting * each_s
        return blocked_s, later_s

    def held_s(self, instance: ResourceInstance, place: Place, model: str) -> float:
        """How much longer its memory cannot be had for `model`: others wait for what was loaded there just now."""
        untils = [
            place.loads.get(evicted, 0.0)
            for evicted in place.evicted_by(instance, model)
            if self._holders[evicted].waiting
        ]
        return max(max(untils, default=0.0) - self._now, 0.0)

    # -- what happens ------------------------------------------------------------------------------------------

    def at(self, now: float) -> None:
        """It is now so late."""
        self._now = now

    def started(self, request: Request, instance: ResourceInstance, model: str, options: ModelAffinityOptions) -> None:
        """A request began; a model that was not there is being loaded now."""
        place, now = self.see(instance), self._now
        if options.horizon_s:
            self._wanted[model].add(1.0, 0.0, now, options.horizon_s)
        own_s = self.own_s(instance, model, request.cost, options)
        loading = any(it.model == model and it.load_left_s(now) for it in place.running.values())
        warm = model in place.resident
        load_s = 0.0 if warm else self.load_s(instance, model, options)
        if not warm:
            before = set(place.resident)
            for evicted in place.evicted_by(instance, model):
                del place.resident[evicted]
                place.loads.pop(evicted, None)
            place.loads[model] = now + (1 + _TURN) * load_s
            self._held(instance.id, before, {*place.resident, model})
        place.resident.pop(model, None)
        place.resident[model] = now
        place.running[request.id] = Running(model, now, own_s + load_s, load_s, warm and not loading)

    def finished(
        self, request: Request, instance: ResourceInstance, outcome: Outcome, options: ModelAffinityOptions
    ) -> None:
        """A request ended: learn from it."""
        place = self.places[instance.id]
        running = place.running.pop(request.id, None)
        self._successes[instance.id].add(outcome, self._now, options.time_constant_s)
        if running is None:
            return
        if running.model in place.resident:
            place.resident[running.model] = self._now
        if outcome.result is Result.OK:
            place.loads_ended((running.model,))
            self._learn(request, instance, running, outcome, options)
        elif running.load_s and running.model in place.resident:
            # Whether it was loaded is not known; if it was, the instance will say so.
            del place.resident[running.model]
            self._held(instance.id, {running.model}, set())
            place.seen = None

    def _learn(
        self,
        request: Request,
        instance: ResourceInstance,
        running: Running,
        outcome: Outcome,
        options: ModelAffinityOptions,
    ) -> None:
        model, now, tau = running.model, self._now, options.time_constant_s
        first_s = outcome.total_s if outcome.first_output_s is None else outcome.first_output_s
        first = self._first[model, request.stream]
        if running.warm:
            first.add(first_s, 1.0, now, tau)
            self._learn_pace(request, instance, model, outcome.total_s, options)
        elif running.load_s:
            usual_s = first.shrunk(0.0 if request.stream else first_s, _BARELY, now, tau)
            load_s = max(first_s - usual_s, 0.0)
            # Of an answer that came whole, nothing can be said before another one came without a load.
            if load_s:
                self._learn_load(instance, model, load_s, options)
                self._learn_pace(request, instance, model, outcome.total_s - load_s, options)

    def _learn_pace(
        self, request: Request, instance: ResourceInstance, model: str, own_s: float, options: ModelAffinityOptions
    ) -> None:
        now, tau = self._now, options.time_constant_s
        self._pace[instance.id, model].add(own_s, request.cost, now, tau)
        self._model_pace[model].add(own_s * instance.weight, request.cost, now, tau)

    def _learn_load(self, instance: ResourceInstance, model: str, load_s: float, options: ModelAffinityOptions) -> None:
        now, tau, size = self._now, options.time_constant_s, size_bytes(instance, model)
        self._load[instance.id, model].add(load_s, 1.0, now, tau)
        self._model_load[model].add(load_s, 1.0, now, tau)
        if size:
            self._by_size.add(load_s, size, now, tau)
