"""What happened, in numbers: mergeable histograms and counters for each instance and method.

A histogram has buckets 2 % wide (each boundary is 1.02 times the one before), so that any percentile is within 1 % of
the truth, two histograms merge by addition, and an idle one takes no memory. After the log-linear histograms of
G. Tene (HdrHistogram) and DDSketch (Masson et al., VLDB 2019).
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Final

from gleitzeit_core.errors import FailureKind
from gleitzeit_core.requests import Result

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gleitzeit_core.requests import Outcome

GROWTH: Final = 1.02
_INVERSE_LOG: Final = 1 / math.log(GROWTH)
_SMALLEST: Final = 1e-9
_LOWEST: Final = math.ceil(math.log(_SMALLEST) * _INVERSE_LOG)
# Neither the caller's own mistakes, nor an instance that is busy, count against anybody.
_NEUTRAL: Final = frozenset((Result.CANCELLED.value, FailureKind.REJECTED.value, FailureKind.BUSY.value))


class Histogram:
    """Durations or sizes, above or equal to 0."""

    __slots__ = ("buckets", "count", "total")

    def __init__(self) -> None:
        self.buckets: dict[int, int] = {}
        self.count = 0
        self.total = 0.0

    def __repr__(self) -> str:
        """Count and median."""
        return f"<Histogram {self.count} values, p50 {self.percentile(50):.6g}>"

    def record(self, value: float) -> None:
        """Count `value`; what is below a nanosecond (or negative, from a clock's rounding) counts as that."""
        bucket = math.ceil(math.log(value) * _INVERSE_LOG) if value > _SMALLEST else _LOWEST
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
        self.count += 1
        self.total += value

    def merge(self, other: Histogram) -> None:
        """Add all of `other`."""
        for bucket, count in other.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + count
        self.count += other.count
        self.total += other.total

    def percentile(self, percent: float) -> float:
        """The value that `percent` of the values do not exceed, within 1 %; 0.0 when there are none.

        Args:
            percent: From 0 to 100.
        """
        rank = max(1, math.ceil(self.count * percent / 100))
        seen = 0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            if seen >= rank:
                # The middle of the bucket, for an error of at most half its width.
                return math.pow(GROWTH, bucket - 0.5)
        return 0.0

    def at_most(self, bound: float) -> int:
        """How many values are at most `bound`, give or take a bucket; for cumulative exports."""
        limit = math.floor(math.log(max(bound, _SMALLEST)) * _INVERSE_LOG)
        return sum(count for bucket, count in self.buckets.items() if bucket <= limit)


class Series:
    """The numbers of one method on one instance."""

    __slots__ = ("first_output_s", "results", "total_s", "wait_s")

    def __init__(self) -> None:
        self.results: Counter[str] = Counter()
        self.wait_s = Histogram()
        self.first_output_s = Histogram()
        self.total_s = Histogram()

    def record(self, outcome: Outcome) -> None:
        """Count one try."""
        self.results[(outcome.kind or outcome.result).value] += 1
        self.wait_s.record(outcome.wait_s)
        self.total_s.record(outcome.total_s)
        if outcome.first_output_s is not None:
            self.first_output_s.record(outcome.first_output_s)

    def merge(self, other: Series) -> None:
        """Add all of `other`."""
        self.results.update(other.results)
        self.wait_s.merge(other.wait_s)
        self.first_output_s.merge(other.first_output_s)
        self.total_s.merge(other.total_s)

    @property
    def success_rate(self) -> float:
        """Successful tries among those that succeeded or failed; 1.0 when there were none."""
        counted = sum(n for result, n in self.results.items() if result not in _NEUTRAL)
        return self.results[Result.OK.value] / counted if counted else 1.0


class ResourceMetrics:
    """All series of a process. Counters of an instance that is gone stay in the sums, under the name ``(gone)``."""

    GONE: Final = "(gone)"

    def __init__(self) -> None:
        self._series: dict[tuple[str, str], Series] = {}

    def __repr__(self) -> str:
        """Counts."""
        return f"<ResourceMetrics {len(self._series)} series, {self.sum().total_s.count} tries>"

    def record(self, method: str, instance_id: str, outcome: Outcome) -> None:
        """Count one try of `method` on `instance_id`."""
        series = self._series.get((method, instance_id))
        if series is None:
            series = self._series[method, instance_id] = Series()
        series.record(outcome)

    def forget(self, instance_id: str) -> None:
        """An instance is gone: fold its numbers into those of all that are gone, so that labels stay bounded."""
        for method, name in [key for key in self._series if key[1] == instance_id]:
            self._series.setdefault((method, self.GONE), Series()).merge(self._series.pop((method, name)))

    def sum(self, *, method: str | None = None, instance_id: str | None = None) -> Series:
        """The numbers of one method, one instance, both or (None) all together."""
        result = Series()
        for (a_method, an_instance), series in self._series.items():
            if method in (None, a_method) and instance_id in (None, an_instance):
                result.merge(series)
        return result

    def __iter__(self) -> Iterator[tuple[str, str, Series]]:
        """(method, instance id, series), in order of name."""
        for (method, instance_id), series in sorted(self._series.items(), key=lambda item: item[0]):
            yield method, instance_id, series
