"""What happened, in numbers: mergeable histograms and counters for each method, instance, route, model, API and result.

A histogram has buckets 2 % wide (each boundary is 1.02 times the one before), so that any percentile is within 1 % of
the truth, two histograms merge by addition, and an idle one takes no memory. After the log-linear histograms of
G. Tene (HdrHistogram) and DDSketch (Masson et al., VLDB 2019).

What is counted goes into the window of the present minute. The last `WINDOWS` of them are what is recent; one that gets
older is added to the past. So nothing is ever counted twice or forgotten, and counting touches one window. Tries are
added in bulk: when some have come together, and before anybody reads.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict, deque
from functools import cache
from itertools import accumulate
from math import ceil, floor, log2
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, TypeVar

from gleitzeit_core.clock import SystemClock
from gleitzeit_core.errors import FailureKind
from gleitzeit_core.requests import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from gleitzeit_core.clock import Clock
    from gleitzeit_core.requests import Outcome

WINDOW_S: Final = 60.0
WINDOWS: Final = 5
GROWTH: Final = 1.02
_INVERSE_LOG: Final = 1 / log2(GROWTH)
_SMALLEST: Final = 1e-9
_LOWEST: Final = ceil(log2(_SMALLEST) * _INVERSE_LOG)
# Tries that wait to be added to their series: as many as take a fraction of a millisecond.
_WAITING_MAX: Final = 256
# From so many on it is quicker to add them number by number.
_MANY: Final = 16
# Neither the caller's own mistakes, nor an instance that is busy or not meant, count against anybody.
_NEUTRAL: Final = frozenset(
    (Result.CANCELLED.value, FailureKind.REJECTED.value, FailureKind.DECLINED.value, FailureKind.BUSY.value)
)


class Histogram:
    """Durations or sizes, above or equal to 0."""

    __slots__ = ("buckets", "total")

    def __init__(self) -> None:
        self.buckets: dict[int, int] = {}
        self.total = 0.0

    def __repr__(self) -> str:
        """Count and median."""
        return f"<Histogram {self.count} values, p50 {self.percentile(50):.6g}>"

    @property
    def count(self) -> int:
        """How many values."""
        return sum(self.buckets.values())

    def record(self, value: float) -> None:
        """Count `value`; what is below a nanosecond (or negative, from a clock's rounding) counts as that."""
        bucket = ceil(log2(value) * _INVERSE_LOG) if value > _SMALLEST else _LOWEST
        buckets = self.buckets
        buckets[bucket] = buckets.get(bucket, 0) + 1
        self.total += value

    def record_all(self, values: Sequence[float]) -> None:
        """Count each of `values`. Often all are the same: no wait at all, or a common number of tokens."""
        many = len(values)
        unlike = values[:1] if values and values.count(values[0]) == many else values
        found = Counter([ceil(log2(value) * _INVERSE_LOG) if value > _SMALLEST else _LOWEST for value in unlike])
        for bucket, times in found.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + (times if unlike is values else many)
        self.total += sum(values)

    def merge(self, other: Histogram) -> None:
        """Add all of `other`."""
        buckets = self.buckets
        if buckets:
            for bucket, count in other.buckets.items():
                buckets[bucket] = buckets.get(bucket, 0) + count
        else:
            buckets.update(other.buckets)
        self.total += other.total

    def percentile(self, percent: float) -> float:
        """The value that `percent` of the values do not exceed, within 1 %; 0.0 when there are none.

        Args:
            percent: From 0 to 100.
        """
        return self.percentiles(percent)[0]

    def percentiles(self, *percents: float, digits: int | None = None) -> tuple[float, ...]:
        """Several of them at once, with so many `digits` after the point; None for all."""
        if not self.buckets:
            return (0.0,) * len(percents)
        buckets, seen = self._cumulated()
        places = [bisect_left(seen, max(1, ceil(seen[-1] * percent / 100))) for percent in percents]
        return tuple([_middle(buckets[place - 1], digits) for place in places])

    def at_most(self, *bounds: float) -> tuple[int, ...]:
        """How many values are at most each of `bounds`, give or take a bucket; for cumulative exports."""
        buckets, seen = self._cumulated()
        limits = (floor(log2(max(bound, _SMALLEST)) * _INVERSE_LOG) for bound in bounds)
        return tuple(seen[bisect_right(buckets, limit)] for limit in limits)

    def _cumulated(self) -> tuple[list[int], list[int]]:
        """The buckets in order, and how many values are in the first 0, 1, 2, ... of them."""
        buckets = sorted(self.buckets)
        return buckets, list(accumulate(map(self.buckets.__getitem__, buckets), initial=0))

    def as_dict(self) -> dict[str, float]:
        """How many values, and their percentiles; these are 0.0 when there are none."""
        p50, p95, p99 = self.percentiles(50, 95, 99, digits=6)
        return {"count": self.count, "p50": p50, "p95": p95, "p99": p99}


@cache
def _middle(bucket: int, digits: int | None) -> float:
    """The middle of a bucket, for an error of at most half its width. There are few buckets, and many histograms."""
    value: float = pow(GROWTH, bucket - 0.5)
    return value if digits is None else round(value, digits)


class Series:
    """The numbers of some tries."""

    _HISTOGRAMS: Final = ("wait_s", "first_output_s", "per_token_s", "total_s")
    _SUMS: Final = ("input_tokens", "output_tokens", "bytes_in", "bytes_out")
    __slots__ = ("bytes_in", "bytes_out", "results", "tokens_in", "tokens_out", *_HISTOGRAMS)

    def __init__(self) -> None:
        self.results: Counter[str] = Counter()
        self.wait_s, self.first_output_s = Histogram(), Histogram()
        self.per_token_s, self.total_s = Histogram(), Histogram()
        self.tokens_in, self.tokens_out = Histogram(), Histogram()
        self.bytes_in = self.bytes_out = 0

    @property
    def input_tokens(self) -> int:
        """Tokens read, in sum."""
        return int(self.tokens_in.total)

    @property
    def output_tokens(self) -> int:
        """Tokens written, in sum."""
        return int(self.tokens_out.total)

    def record(self, outcome: Outcome) -> None:
        """Count one try."""
        self.results[(outcome.kind or outcome.result).value] += 1
        self.wait_s.record(outcome.wait_s)
        self.total_s.record(outcome.total_s)
        if outcome.first_output_s is not None:
            self.first_output_s.record(outcome.first_output_s)
        self.bytes_in += outcome.bytes_in
        self.bytes_out += outcome.bytes_out
        if outcome.usage is not None:
            self.tokens_in.record(outcome.usage.input_tokens)
            self.tokens_out.record(outcome.usage.output_tokens)
            if (per_token_s := outcome.per_token_s) is not None:
                self.per_token_s.record(per_token_s)

    def record_all(self, outcomes: Sequence[Outcome]) -> None:
        """Count some tries: number by number, which for many takes less than one by one."""
        if len(outcomes) < _MANY:
            for outcome in outcomes:
                self.record(outcome)
            return
        results, kinds, waits, firsts, totals, _, usages, bytes_in, bytes_out, _ = zip(*outcomes, strict=True)
        self.results.update([(kind or result)._value_ for kind, result in zip(kinds, results, strict=True)])
        self.wait_s.record_all(waits)
        self.total_s.record_all(totals)
        self.first_output_s.record_all([first_s for first_s in firsts if first_s is not None])
        self.bytes_in += sum(bytes_in)
        self.bytes_out += sum(bytes_out)
        used = [usage for usage in usages if usage is not None]
        self.tokens_in.record_all([usage.input_tokens for usage in used])
        self.tokens_out.record_all([usage.output_tokens for usage in used])
        self.per_token_s.record_all([s for outcome in outcomes if (s := outcome.per_token_s) is not None])

    def merge(self, other: Series) -> None:
        """Add all of `other`."""
        for result, count in other.results.items():
            self.results[result] += count
        self.wait_s.merge(other.wait_s)
        self.first_output_s.merge(other.first_output_s)
        self.per_token_s.merge(other.per_token_s)
        self.total_s.merge(other.total_s)
        self.tokens_in.merge(other.tokens_in)
        self.tokens_out.merge(other.tokens_out)
        self.bytes_in += other.bytes_in
        self.bytes_out += other.bytes_out

    @property
    def success_rate(self) -> float:
        """Successful tries among those that succeeded or failed; 1.0 when there were none."""
        counted = sum([n for result, n in self.results.items() if result not in _NEUTRAL])
        return self.results["ok"] / counted if counted else 1.0

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain data: counts, sums, and percentiles of each histogram."""
        return {
            "count": self.total_s.count,
            "success_rate": round(self.success_rate, 4),
            "results": dict(self.results),
            **{name: getattr(self, name).as_dict() for name in self._HISTOGRAMS},
            **{name: getattr(self, name) for name in self._SUMS},
        }


_Rows: TypeAlias = defaultdict[tuple[str, str, str, str, str], Series]
# Labels as they come: the last is no text yet.
_Tried: TypeAlias = tuple[str, str, str, str, str, Result | FailureKind]


class Labels(NamedTuple):
    """What a series is about; an empty text where a try had no such thing.

    Args:
        method: Such as ``llm/chat``.
        instance: The id of the instance.
        route: The name of the route.
        model: What was asked for.
        api: The client API it was asked in, such as ``openai``; empty for the library's callers.
        result: ``ok``, ``cancelled``, or the kind of failure.
    """

    method: str
    instance: str
    route: str
    model: str
    api: str
    result: str


_Labels = TypeVar("_Labels", bound=tuple[str, ...])
_Key = TypeVar("_Key", bound="str | tuple[str, ...]")


class _Window:
    """What was counted in some time: the series of each instance, by (method, route, model, api, result)."""

    __slots__ = ("first_output_s", "instances")

    def __init__(self) -> None:
        self.instances: defaultdict[str, _Rows] = defaultdict(lambda: defaultdict(Series))
        # Over all instances, by (route, model), for those that somebody watches.
        self.first_output_s: defaultdict[tuple[str, str], Histogram] = defaultdict(Histogram)

    def add(self, instance_id: str, rows: _Rows) -> None:
        """Add `rows`, which are nobody else's any more, to those of an instance."""
        mine = self.instances.setdefault(instance_id, rows)
        if mine is not rows:
            for key, series in rows.items():
                mine[key].merge(series)


class ResourceMetrics:
    """All series of a process. Counters of an instance that is gone stay in the sums, under the name ``(gone)``.

    Args:
        clock: Tells what is recent.
    """

    GONE: Final = "(gone)"

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._past = _Window()
        self._ring = deque(_Window() for _ in range(WINDOWS))
        self._turn_at = self._clock.monotonic() + WINDOW_S
        # Tries of the present minute that are in no series yet, with their labels.
        self._waiting: list[tuple[_Tried, Outcome]] = []
        self._watched: set[tuple[str, str]] = set()
        self._percentiles: dict[tuple[str, str, float, int], tuple[float, float | None]] = {}

    def __repr__(self) -> str:
        """Counts."""
        return f"<ResourceMetrics {sum(1 for _ in self)} series, {self.sum().total_s.count} tries>"

    def record(
        self, method: str, instance_id: str, outcome: Outcome, *, route: str = "", model: str = "", api: str = ""
    ) -> None:
        """Count one try of `method` on `instance_id`; see `Labels`."""
        if len(self._waiting) >= _WAITING_MAX or self._clock.monotonic() >= self._turn_at:
            self._turn()
        self._waiting.append(((method, instance_id, route, model, api, outcome.kind or outcome.result), outcome))

    def _fold(self) -> None:
        """Add those that wait to their series: many at once take a fraction of the time that each would take alone."""
        waiting, self._waiting, window = self._waiting, [], self._ring[-1]
        alike: defaultdict[_Tried, list[Outcome]] = defaultdict(list)
        for labels, outcome in waiting:
            alike[labels].append(outcome)
        for (method, instance_id, route, model, api, result), outcomes in alike.items():
            window.instances[instance_id][method, route, model, api, result.value].record_all(outcomes)
            if (route, model) in self._watched:
                first_s = [outcome.first_output_s for outcome in outcomes if outcome.first_output_s is not None]
                window.first_output_s[route, model].record_all(first_s)

    def forget(self, instance_id: str) -> None:
        """An instance is gone: fold its numbers into those of all that are gone, so that labels stay bounded."""
        self._fold()
        for window in (self._past, *self._ring):
            rows = window.instances.pop(instance_id, None)
            if rows is not None:
                window.add(self.GONE, rows)

    def sum(
        self,
        *,
        method: str | None = None,
        instance_id: str | None = None,
        model: str | None = None,
        route: str | None = None,
        recent: bool = False,
    ) -> Series:
        """The numbers of all tries, or (not None) of those with all of these labels.

        Args:
            method: Only of this method.
            instance_id: Only on this instance.
            model: Only for this model; empty for those that ask for none.
            route: Only by this route.
            recent: Only of the last four to five minutes.
        """
        wanted = (method, instance_id, route, model)
        result = Series()
        for labels, series in self._rows(recent=recent, instance_id=instance_id):
            if all(only in (None, label) for only, label in zip(wanted, labels[:4], strict=True)):
                result.merge(series)
        return result

    def by(self, label: str, *, recent: bool = False) -> dict[str, Series]:
        """The numbers for each value of `label`, in order. To be read at once: some of the series go on counting.

        Args:
            label: One of `Labels`.
            recent: Only of the last four to five minutes.

        Raises:
            ValueError: There is no such label.
        """
        if label not in Labels._fields:
            raise ValueError(f"no label {label!r}; there are {', '.join(Labels._fields)}")
        return _grouped(self._rows(recent=recent), attrgetter(label))

    def report(self, *, recent: bool = True) -> dict[str, Any]:
        """Everything as plain data: in sum, and for each instance, model, route, method and client API.

        Args:
            recent: Of the last four to five minutes; False: since the process began.
        """
        rows = list(self._rows(recent=recent))
        # Instances may be thousands, what is asked of them is little: the other sums are made of sums over all of them.
        groups = {"instance": _grouped(rows, attrgetter("instance"))}
        names = ("method", "route", "model", "api")
        over_all = _grouped(rows, attrgetter(*names)).items()
        groups |= {label: _grouped(over_all, itemgetter(place)) for place, label in enumerate(names)}
        everything = _grouped(over_all, lambda _: "").get("", Series())
        parts = {f"{label}s": {name: s.as_dict() for name, s in of.items() if name} for label, of in groups.items()}
        return {"window_s": WINDOW_S * WINDOWS if recent else None, "sum": everything.as_dict(), **parts}

    def percentile_of_first_output(self, route: str, model: str, percentile: float, min_samples: int) -> float | None:
        """The recent first outputs' percentile, at most about a second old; None when there are too few of them.

        Args:
            route: By this route, over all its instances.
            model: For this model; empty for those that ask for none.
            percentile: From 0 to 100.
            min_samples: With fewer first outputs nothing can be said.
        """
        key, now = (route, model, percentile, min_samples), self._clock.monotonic()
        good_until, value = self._percentiles.get(key, (now, None))
        if good_until <= now:
            self._turn()
            self._watch(route, model)
            merged = Histogram()
            for window in self._ring:
                merged.merge(window.first_output_s.get((route, model), _NOTHING))
            value = merged.percentile(percentile) if merged.count >= max(1, min_samples) else None
            self._percentiles[key] = now + 1.0, value
        return value

    def __iter__(self) -> Iterator[tuple[Labels, Series]]:
        """All series since the process began, in order of their labels; to be read at once, as with `by`."""
        return iter(_grouped(self._rows(recent=False), Labels._make).items())

    def _watch(self, route: str, model: str) -> None:
        """Keep the first outputs of a route and a model together from now on; what is recent is added up once."""
        if (route, model) not in self._watched:
            self._watched.add((route, model))
            for window in self._ring:
                for rows in window.instances.values():
                    for (_, *of), series in rows.items():
                        if of[:2] == [route, model]:
                            window.first_output_s[route, model].merge(series.first_output_s)

    def _rows(self, *, recent: bool, instance_id: str | None = None) -> Iterator[tuple[Labels, Series]]:
        self._turn()
        for window in self._ring if recent else (self._past, *self._ring):
            every = window.instances
            for name in every if instance_id is None else every.keys() & {instance_id}:
                for (method, *of), series in every[name].items():
                    yield Labels(method, name, *of), series

    def _turn(self) -> None:
        """Count what waits, begin a new window for each minute that has passed, and let the oldest go to the past."""
        self._fold()
        late_s = self._clock.monotonic() - self._turn_at
        if late_s < 0:
            return
        turns = int(late_s // WINDOW_S) + 1
        self._turn_at += turns * WINDOW_S
        # Whom nobody asks for any more is not kept either.
        self._percentiles.clear()
        for _ in range(min(turns, WINDOWS)):
            for instance_id, rows in self._ring.popleft().instances.items():
                self._past.add(instance_id, rows)
            self._ring.append(_Window())


def _grouped(rows: Iterable[tuple[_Labels, Series]], key: Callable[[_Labels], _Key]) -> dict[_Key, Series]:
    """The sums of those with the same key, in order. One that is alone is not copied: it may go on counting."""
    found: dict[_Key, Series] = {}
    sums: set[_Key] = set()
    for labels, series in rows:
        name = key(labels)
        if found.setdefault(name, series) is series:
            continue
        if name not in sums:
            sums.add(name)
            alone, found[name] = found[name], Series()
            found[name].merge(alone)
        found[name].merge(series)
    return dict(sorted(found.items(), key=itemgetter(0)))


_NOTHING: Final = Histogram()
