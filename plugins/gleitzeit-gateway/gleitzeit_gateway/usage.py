"""What was used: requests, tokens, bytes and time for each key, model and instance; in all, and of late.

What is counted goes into the rows of the present five minutes. Those older than an hour are added to the rows of their
hour, and hours older than a day to the past. So counting touches one row, and nothing is counted twice or forgotten.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from gleitzeit_core.errors import NoCapableInstance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from gleitzeit_core.runs import Run

ROWS_MAX: Final = 1000
"""Of each period; what does not fit is counted for its key alone."""
OTHERS: Final = "(others)"
"""The model and the instance of what did not fit."""
NOBODY: Final = "-"
"""The key of those who have none; also the model and the instance of what had none."""
WINDOWS: Final = ("total", "day", "hour")

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

    def __repr__(self) -> str:
        """Counts."""
        return f"<Usage {self.sum().requests} requests in {sum(map(len, self._every()))} rows>"

    def finished(self, run: Run, error: BaseException | None) -> None:
        """Count a request that has ended. For `Running.watchers`.

        What is answered without an instance, such as a list, is not counted.
        """
        if run.method.local:
            return
        if self._monotonic() >= self._ends_at:
            self._turn()
        request, outcome = run.request, run.outcome
        # What nobody has heard of is any text that a caller made up: rows are not for that.
        model = NOBODY if isinstance(error, NoCapableInstance) else request.requirements.model or NOBODY
        of = (request.tenant or NOBODY, model, run.instance_id or NOBODY)
        row = self._rows.get(of) or _new(self._rows, Of(*of))
        row.requests += 1
        row.tries += run.tries
        if error is not None:
            if run.ending is None and isinstance(error, _LEFT):
                row.cancelled += 1
            else:
                row.failed += 1
        if outcome is not None:
            row.bytes_in += outcome.bytes_in
            row.bytes_out += outcome.bytes_out
            row.time_s += outcome.total_s
            if outcome.usage is not None:
                row.input_tokens += outcome.usage.input_tokens
                row.output_tokens += outcome.usage.output_tokens

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
        if self._monotonic() >= self._ends_at:
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
        """Begin a new slot, and let those that are old go to their hour, and hours to the past."""
        slot = int(self._monotonic() // _SLOT_S)
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
