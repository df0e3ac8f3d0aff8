"""What was used: requests, tokens, bytes and time for each key, model and instance; in all, and of late.

What is counted goes into the rows of the present five minutes. Those older than an hour are added to the rows of their
hour, and hours older than a day to the past. So nothing is counted twice or forgotten. Requests are added in bulk: when
some have come together, and before anybody reads.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from gleitzeit_core.errors import NoCapableInstance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from gleitzeit_core.requests import Outcome
    from gleitzeit_core.runs import Run

ROWS_MAX: Final = 1000
"""Of each period; what does not fit is counted for its key alone."""
OTHERS: Final = "(others)"
"""The model and the instance of what did not fit."""
NOBODY: Final = "-"
"""The key of those who have none; also the model and the instance of what had none."""
WINDOWS: Final = ("total", "day", "hour")

# Requests that wait to be added to their rows: as many as take a fraction of a millisecond.
_WAITING_MAX: Final = 256
_SLOT_S: Final = 300.0
_SLOTS: Final = 12
_HOURS: Final = 24
_LEFT: Final = (asyncio.CancelledError, GeneratorExit)


class Of(NamedTuple):
    """What a row is about."""

    key: str
    model: str
    instance: str


BY: Final = Of._fields


@dataclass(slots=True)
class Used:
    """What some requests have used.

    Args:
        requests: That have ended, well or not. One that was tried several times is one.
        failed: Of these, with an error.
        cancelled: Of these, whose callers have left.
        tries: On instances.
        input_tokens: Read, as the answers say.
        output_tokens: Written, as the answers say.
        bytes_in: Sent to instances, where that is bytes.
        bytes_out: Received from them, where that is bytes.
        time_s: On the instances that the requests were on last, in seconds.
    """

    requests: int = 0
    failed: int = 0
    cancelled: int = 0
    tries: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    time_s: float = 0.0

    def add(self, other: Used) -> None:
        """Add what others have used."""
        for name in _NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def add_last_tries(self, outcomes: Sequence[Outcome]) -> None:
        """Add what requests have used on the instances that they were on last."""
        self.bytes_in += sum(map(_BYTES_IN, outcomes))
        self.bytes_out += sum(map(_BYTES_OUT, outcomes))
        self.time_s += sum(map(_TOTAL_S, outcomes))
        took = [outcome.usage for outcome in outcomes if outcome.usage is not None]
        self.input_tokens += sum(map(_INPUT_TOKENS, took))
        self.output_tokens += sum(map(_OUTPUT_TOKENS, took))


_BYTES_IN, _BYTES_OUT, _TOTAL_S = map(attrgetter, ("bytes_in", "bytes_out", "total_s"))
_INPUT_TOKENS, _OUTPUT_TOKENS = map(attrgetter, ("input_tokens", "output_tokens"))
_NUMBERS: Final = tuple(field.name for field in fields(Used))
# A plain tuple finds what is about the same, and is made in a fifth of the time.
_Rows = dict[tuple[str, str, str], Used]


class Usage:
    """See the module's text.

    Args:
        monotonic: Tells the time.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._past: _Rows = {}
        self._hours: dict[int, _Rows] = {}
        self._slots: dict[int, _Rows] = {}
        self._rows: _Rows = {}
        self._ends_at = float("-inf")
        # Requests of the present five minutes that are in no row yet: what many have alike, and their last tries.
        self._waiting: list[tuple[tuple[str, str, str, int, str], Outcome | None]] = []

    def __repr__(self) -> str:
        """Counts."""
        return f"<Usage {self.sum().requests} requests in {sum(map(len, self._every()))} rows>"

    def finished(self, run: Run, error: BaseException | None) -> None:
        """Count a request that has ended. For `Running.watchers`.

        What is answered without an instance, such as a list, is not counted.
        """
        if run.method.local:
            return
        if len(self._waiting) >= _WAITING_MAX or self._monotonic() >= self._ends_at:
            self._turn()
        request = run.request
        model, badly = request.requirements.model, ""
        if error is not None:
            badly = "cancelled" if run.ending is None and isinstance(error, _LEFT) else "failed"
            # What nobody has heard of is any text that a caller made up: rows are not for that.
            model = "" if isinstance(error, NoCapableInstance) else model
        self._waiting.append(((request.tenant, model, run.instance_id, run.tries, badly), run.outcome))

    def _fold(self) -> None:
        """Add those that wait to their rows: many at once take a fraction of the time that each would take alone."""
        waiting, self._waiting = self._waiting, []
        alike: defaultdict[tuple[str, str, str, int, str], list[Outcome | None]] = defaultdict(list)
        for about, outcome in waiting:
            alike[about].append(outcome)
        for (key, model, instance, tries, badly), outcomes in alike.items():
            of, count = Of(key or NOBODY, model or NOBODY, instance or NOBODY), len(outcomes)
            row = self._rows.get(of) or _new(self._rows, of)
            row.requests += count
            row.tries += count * tries
            row.failed += count * (badly == "failed")
            row.cancelled += count * (badly == "cancelled")
            row.add_last_tries([outcome for outcome in outcomes if outcome is not None])

    def table(self, by: Sequence[str] = ("key",), *, window: str = "total", key: str | None = None) -> list[Any]:
        """What was used, a row for each value of `by`, as plain data, those with most tokens first.

        Args:
            by: Some of `BY`.
            window: ``total``; ``hour``, the last 55 to 60 minutes; ``day``, the last 23 to 24 hours.
            key: Only of this key; None for all.
        """
        found: dict[tuple[str, ...], Used] = {}
        for of, used in self._of(window, key):
            found.setdefault(tuple(getattr(of, name) for name in by), Used()).add(used)
        most = sorted(found.items(), key=lambda item: (-item[1].input_tokens - item[1].output_tokens, item[0]))
        return [{**dict(zip(by, values, strict=True)), **_plain(used)} for values, used in most]

    def sum(self, *, window: str = "total", key: str | None = None) -> Used:
        """All of it together; `window` and `key` as for `table`."""
        found = Used()
        for _, used in self._of(window, key):
            found.add(used)
        return found

    def report(self, by: Sequence[str], *, window: str, key: str | None = None) -> dict[str, Any]:
        """Both, as plain data."""
        total = _plain(self.sum(window=window, key=key))
        return {"window": window, "by": [*by], "rows": self.table(by, window=window, key=key), "sum": total}

    def _of(self, window: str, key: str | None) -> Iterator[tuple[Of, Used]]:
        self._turn()
        for rows in self._every(window):
            for of, used in rows.items():
                if key in (None, of[0]):
                    yield Of(*of), used

    def _every(self, window: str = "total") -> Iterable[_Rows]:
        yield from self._slots.values()
        if window != "hour":
            yield from self._hours.values()
        if window == "total":
            yield self._past

    def _turn(self) -> None:
        """Count what waits, begin a new slot where its time has come, and let old ones go to their hour or the past."""
        self._fold()
        now = self._monotonic()
        if now < self._ends_at:
            return
        slot = int(now // _SLOT_S)
        self._ends_at = (slot + 1) * _SLOT_S
        self._rows = self._slots.setdefault(slot, {})
        for old in [one for one in self._slots if one <= slot - _SLOTS]:
            _merge(self._hours.setdefault(old // _SLOTS, {}), self._slots.pop(old))
        for old in [one for one in self._hours if one <= slot // _SLOTS - _HOURS]:
            _merge(self._past, self._hours.pop(old))


def _new(rows: _Rows, of: Of) -> Used:
    """A row for `of`, or that of its key where there are too many: keys are as many as the configuration has."""
    return rows.setdefault(of if len(rows) < ROWS_MAX else Of(of.key, OTHERS, OTHERS), Used())


def _merge(rows: _Rows, more: _Rows) -> None:
    for of, used in more.items():
        (rows.get(of) or _new(rows, Of(*of))).add(used)


def _plain(used: Used) -> dict[str, Any]:
    return {**asdict(used), "time_s": round(used.time_s, 6)}
