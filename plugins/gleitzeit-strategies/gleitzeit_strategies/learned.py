"""What strategies learn: ratios of two sums in which older observations count less.

With seconds over work this is the time a unit of work takes; with successes over tries, the success rate. Long
observations weigh as much as they are long, many at the same instant all count, and with time alone an estimate goes
back to what it is shrunk towards: an instance that was slow long ago is tried again.
"""

from __future__ import annotations

from collections import OrderedDict
from math import exp
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from gleitzeit_core.errors import FailureKind
from gleitzeit_core.requests import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from gleitzeit_core.requests import Outcome, Request

_K = TypeVar("_K", bound="Hashable")
_V = TypeVar("_V")


class Ratio:
    """Two sums that decay exponentially.

    Args:
        now: The present, in seconds on the monotonic clock.
    """

    __slots__ = ("_at", "_over", "_under")

    def __init__(self, now: float) -> None:
        self._over, self._under, self._at = 0.0, 0.0, now

    def __repr__(self) -> str:
        """Both sums."""
        return f"<Ratio {self._over:.6g} / {self._under:.6g}>"

    def add(self, over: float, under: float, now: float, time_constant_s: float) -> None:
        """An observation."""
        fade = self._fade(now, time_constant_s)
        self._over, self._under, self._at = self._over * fade + over, self._under * fade + under, now

    def shrunk(self, towards: float, weight: float, now: float, time_constant_s: float) -> float:
        """The ratio, as if `towards` had been observed besides, over as much as `weight`, above 0."""
        fade = self._fade(now, time_constant_s)
        return (self._over * fade + towards * weight) / (self._under * fade + weight)

    def count(self, now: float, time_constant_s: float) -> float:
        """The upper sum: with 1 added for each event, how many there are in a time constant, when they go on so."""
        return self._over * self._fade(now, time_constant_s)

    def _fade(self, now: float, time_constant_s: float) -> float:
        return exp((self._at - now) / time_constant_s) if now > self._at else 1.0


class Lately(Generic[_K, _V]):
    """A bounded table that makes what it lacks and forgets what was not asked for the longest.

    Args:
        make: Makes a value.
        size: How many are kept.
    """

    __slots__ = ("_make", "_size", "_table")

    def __init__(self, make: Callable[[], _V], size: int) -> None:
        self._make, self._size = make, size
        self._table: OrderedDict[_K, _V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, key: _K) -> _V:
        found = self._table.get(key)
        if found is None:
            found = self._table[key] = self._make()
            if len(self._table) > self._size:
                self._table.popitem(last=False)
        else:
            self._table.move_to_end(key)
        return found


_UNITS_UNKNOWN: Final = 1.0
# Where there are observations, they outweigh this; where there are none, it decides.
_BARELY: Final = 1e-6
_NOT_ITS_FAULT: Final = (FailureKind.BUSY, FailureKind.DECLINED, FailureKind.REJECTED)
# With one of ten tries failing an instance counts as one and a half times as slow, with four of ten as eight times. To
# weigh by the tries for one success would be too little: what fails at once has nothing in flight, and so looks idle.
_SEVERITY: Final = 4
_BURDEN_MAX: Final = 100.0


class Successes:
    """How many of an instance's tries succeed.

    Args:
        now: On the monotonic clock.
    """

    __slots__ = ("_ratio",)

    def __init__(self, now: float) -> None:
        self._ratio = Ratio(now)

    def add(self, outcome: Outcome, now: float, time_constant_s: float) -> None:
        """A try ended. Neither a caller that left nor what is not the instance's fault counts."""
        if outcome.result is Result.OK:
            self._ratio.add(1.0, 1.0, now, time_constant_s)
        elif outcome.result is Result.FAILED and outcome.kind not in _NOT_ITS_FAULT:
            self._ratio.add(0.0, 1.0, now, time_constant_s)

    def burden(self, now: float, time_constant_s: float) -> float:
        """By how much it counts as slower than it is, from 1 for one that never fails to 100."""
        success = self._ratio.shrunk(1.0, 1.0, now, time_constant_s)
        return min(_BURDEN_MAX, success**-_SEVERITY) if success > 0 else _BURDEN_MAX


class Speed:
    """How one instance has done: seconds per unit of work, successes, and what it works on.

    Args:
        now: On the monotonic clock.
    """

    __slots__ = ("pace", "running", "successes")

    def __init__(self, now: float) -> None:
        self.pace, self.successes = Ratio(now), Successes(now)
        # When each request began that has not ended, the oldest first.
        self.running: dict[str, float] = {}


class Speeds:
    """How all instances of one strategy have done.

    Work is counted in output tokens where answers tell, else by the cost that was expected. An instance without
    observations counts as the mean of all. A failure says nothing of speed, but the more of its tries fail, the slower
    an instance counts (`Successes`): it does not become attractive by failing quickly.
    """

    def __init__(self, time_constant_s: float, now: float) -> None:
        self.time_constant_s = time_constant_s
        self._now = now
        self._mean, self._tokens, self._work = Ratio(now), Ratio(now), Ratio(now)
        self._of: dict[str, Speed] = {}

    def __len__(self) -> int:
        return len(self._of)

    def of(self, instance_id: str) -> Speed:
        """What is known of one."""
        found = self._of.get(instance_id)
        if found is None:
            found = self._of[instance_id] = Speed(self._now)
        return found

    def started(self, request: Request, instance_id: str, now: float) -> None:
        """A try began."""
        self._now = now
        self.of(instance_id).running[request.id] = now

    def finished(self, request: Request, instance_id: str, outcome: Outcome, now: float) -> None:
        """A try ended."""
        self._now = now
        known, tau = self.of(instance_id), self.time_constant_s
        known.running.pop(request.id, None)
        known.successes.add(outcome, now, tau)
        if outcome.result is Result.OK:
            self._learn(request, known, outcome, now)

    def _learn(self, request: Request, known: Speed, outcome: Outcome, now: float) -> None:
        tokens = outcome.usage.output_tokens if outcome.usage is not None else 0
        each_s = outcome.per_token_s
        if each_s is not None:
            self._tokens.add(tokens, request.cost, now, self.time_constant_s)
            seconds, units = each_s * tokens, float(tokens)
        else:
            seconds, units = outcome.total_s, request.cost * self._units_of_cost(now)
        self._work.add(units, 1.0, now, self.time_constant_s)
        for ratio in (known.pace, self._mean):
            ratio.add(seconds, units, now, self.time_constant_s)

    def _units_of_cost(self, now: float) -> float:
        return self._tokens.shrunk(_UNITS_UNKNOWN, _BARELY, now, self.time_constant_s)

    def units(self, now: float) -> float:
        """The work in a usual request."""
        return self._work.shrunk(_UNITS_UNKNOWN, _BARELY, now, self.time_constant_s)

    def pace_s(self, instance_id: str, now: float) -> float:
        """Seconds for a unit of work, failures counted in; shrunk towards the mean of all by one usual request."""
        tau = self.time_constant_s
        mean = self._mean.shrunk(1.0, _BARELY, now, tau)
        known = self._of.get(instance_id)
        if known is None:
            return mean
        return known.pace.shrunk(mean, self.units(now), now, tau) * known.successes.burden(now, tau)

    def oldest_s(self, instance_id: str, now: float) -> float:
        """The age of its oldest request that has not ended; 0 without one."""
        known = self._of.get(instance_id)
        return now - next(iter(known.running.values())) if known is not None and known.running else 0.0

    def forget_all_but(self, instance_ids: set[str]) -> None:
        """Let go of those that are gone and have no work left."""
        self._of = {name: known for name, known in self._of.items() if name in instance_ids or known.running}
