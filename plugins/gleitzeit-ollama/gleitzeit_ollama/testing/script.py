"""The script of a server's misbehaviour: which request meets which fault."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from gleitzeit_ollama.testing import faults
from gleitzeit_ollama.testing.routes import WORK_PATHS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gleitzeit_ollama.testing.faults import Fault
    from gleitzeit_ollama.testing.records import RequestRecord

On = str | Callable[["RequestRecord"], bool]
"""`work` (requests to a model), `any`, a pattern for the path such as `/v1/*`, or a function."""


@dataclass(slots=True)
class _Entry:
    fault: Fault
    on: On
    times: int | None

    def meets(self, record: RequestRecord) -> bool:
        if callable(self.on):
            return self.on(record)
        if self.on == "work":
            return record.path in WORK_PATHS
        return self.on == "any" or fnmatchcase(record.path, self.on)


class Script:
    """Faults to come, in order: first those for the next requests, then those for all."""

    def __init__(self) -> None:
        self._next: list[_Entry] = []
        self._always: list[_Entry] = []

    def next(self, fault: Fault, *, times: int = 1, on: On = "work") -> None:
        """Let the next `times` requests that `on` matches meet `fault`, after those already set.

        Raises:
            ValueError: `times` is less than 1.
        """
        if times < 1:
            raise ValueError(f"times must be at least 1, got {times}")
        self._next.append(_Entry(fault, on, times))

    def always(self, fault: Fault, *, on: On = "work") -> None:
        """Let every request that `on` matches meet `fault`; the latest such fault wins."""
        self._always.insert(0, _Entry(fault, on, None))

    def clear(self) -> None:
        """Forget all faults; requests that have met theirs keep it."""
        self._next.clear()
        self._always.clear()

    def take(self, record: RequestRecord) -> Fault | None:
        """Return the fault this request meets, and count it."""
        for entry in (*self._next, *self._always):
            if entry.meets(record):
                self._count(entry)
                return entry.fault
        return None

    def _count(self, entry: _Entry) -> None:
        if entry.times is None:
            return
        entry.times -= 1
        if not entry.times:
            self._next.remove(entry)

    def __len__(self) -> int:
        return len(self._next) + len(self._always)

    def __repr__(self) -> str:
        return f"<Script {len(self._next)} next, {len(self._always)} always>"


_KINDS: dict[str, type[Fault]] = {
    "status": faults.Status,
    "busy": faults.Busy,
    "unauthorized": faults.Unauthorized,
    "garbage": faults.Garbage,
    "hang": faults.Hang,
    "hang_before_headers": faults.HangBeforeHeaders,
    "slow_load": faults.SlowLoad,
    "stall_after": faults.StallAfter,
    "drop_before_headers": faults.DropBeforeHeaders,
    "drop_after": faults.DropAfter,
    "truncate_after": faults.TruncateAfter,
    "error_line_after": faults.ErrorLineAfter,
}
_LOCAL = ("reached", "released", "event")
_TYPES: dict[str, tuple[type, ...]] = {
    "code": (int,),
    "n_parts": (int,),
    "retry_after_s": (int, type(None)),
    "reset": (bool,),
    "error": (str,),
    "content_type": (str,),
    "headers": (dict,),
    "body": (str, dict),
}


def fault_to_json(fault: Fault) -> dict[str, object]:
    """Return a fault as it is sent to another process; its events stay behind.

    Raises:
        ValueError: it is no fault of this module.
    """
    for kind, make in _KINDS.items():
        if type(fault) is make:
            values = {item.name: getattr(fault, item.name) for item in fields(fault)}
            sent = {name: _plain(value) for name, value in values.items() if name not in _LOCAL}
            return {"kind": kind, **sent}
    raise ValueError(f"{fault!r} cannot be sent to another process; these can: {', '.join(_KINDS)}")


def _plain(value: object) -> object:
    return value.decode() if isinstance(value, bytes) else value


def fault_from_json(sent: Mapping[str, object]) -> Fault:
    """Make the fault that `fault_to_json` wrote.

    Raises:
        ValueError: the kind, an option or its type is not known.
    """
    options = dict(sent)
    kind = options.pop("kind", None)
    make = _KINDS.get(kind) if isinstance(kind, str) else None
    if make is None:
        raise ValueError(f"unknown fault {kind!r}; there are: {', '.join(_KINDS)}")
    known = {item.name for item in fields(make)} - set(_LOCAL)
    for name, value in options.items():
        if name not in known or not isinstance(value, _TYPES[name]):
            raise ValueError(f"fault {kind!r} takes no {name}={value!r}; options: {', '.join(sorted(known))}")
    return make(**options)
