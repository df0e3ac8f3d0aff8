"""Every error Gleitzeit raises, in one tree.

    GleitzeitError
    ├── ConfigurationError         a configuration with problems; lists all of them
    ├── PluginError                a plugin that a configuration names cannot be used
    ├── UnknownName                a name nothing installed answers to
    ├── ClosedError                used after close
    ├── CircuitOpen                a breaker lets nothing through
    └── RequestError               one request failed
        ├── InvalidRequest         the caller's own fault
        ├── UnknownMethod          no provider has the method
        ├── NoCapableInstance      nothing known can do it
        ├── Unavailable            what could do it is down
        ├── QueueFull              too many are waiting already
        ├── DeadlineExceeded       its time ran out, waiting or running
        ├── ShuttingDown           nothing new is taken
        ├── LeaseExpired           a lease was used after its end
        └── InstanceFailure        the instance failed; `kind` says how

Each carries a stable ``code`` for programs, a sentence for a person, and whether the same request may succeed later
(``retryable``). Foreign exceptions are translated where they are raised, so that callers see only these.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


_SHOWN_MAX = 30


class GleitzeitError(Exception):
    """Base of all errors; `message` is a sentence for a person."""

    code: ClassVar[str] = "error"
    retryable: bool = False
    of_request: str = ""
    """The id of the request that failed, once it is told to somebody outside."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def as_dict(self) -> dict[str, Any]:
        """The one inner shape of an error: ``code``, ``message``, ``retryable``."""
        return {"code": self.code, "message": self.message, "retryable": self.retryable}


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a configuration.

    Args:
        path: Where, as written by a person: ``hubs.lan.instances[0].url``; empty for the whole.
        message: What is wrong.
        suggestion: What to do; empty when nothing sensible can be said.
        place: File and line, ``gleitzeit.yaml:7``, or the environment variable or flag; empty when unknown.
    """

    path: str
    message: str
    suggestion: str = ""
    place: str = ""

    def __str__(self) -> str:
        text = ": ".join(part for part in (self.place, self.path, self.message) if part)
        return f"{text} ({self.suggestion})" if self.suggestion else text


class ConfigurationError(GleitzeitError):
    """A configuration that cannot be used, with all its problems at once: at least one."""

    code = "configuration"

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        head = f"configuration: {len(self.problems)} problem{'s' * (len(self.problems) != 1)}"
        super().__init__("\n  ".join([head, *map(str, self.problems)]))


class PluginError(GleitzeitError):
    """A plugin that is needed cannot be used."""

    code = "plugin"


class UnknownName(GleitzeitError):
    """No `kind` (``hub type``, ``strategy``, ...) of this `name` among those `known`; `hint` says what else to do.

    `are` says how those that are known come to be so.
    """

    code = "unknown_name"

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "", *, are: str = "installed") -> None:
        self.kind, self.name, self.known = kind, name, tuple(sorted(known))
        self.hint = "; ".join(part for part in (nearest(name, self.known), hint) if part)
        more = len(self.known) - _SHOWN_MAX
        have = ", ".join(self.known[:_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "") or "none"
        super().__init__(f"unknown {kind} {name!r}; {are}: {have}" + (f"; {self.hint}" if self.hint else ""))


class ClosedError(GleitzeitError):
    """Something was used before it was opened or after it was closed."""

    code = "closed"


class CircuitOpen(GleitzeitError):
    """A breaker let something not even begin; come back after `retry_after_s` seconds."""

    code = "circuit_open"
    retryable = True

    def __init__(self, *, retry_after_s: float) -> None:
        super().__init__(f"circuit is open: too much has failed of late; retry after {retry_after_s:.0f} s")
        self.retry_after_s = retry_after_s


class RequestError(GleitzeitError):
    """A request failed."""

    code = "request"


class InvalidRequest(RequestError):
    """The request itself is wrong; `param` names the parameter at fault, if one is."""

    code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class UnknownMethod(RequestError):
    """No provider has the method."""

    code = "unknown_method"

    def __init__(self, method: str, known: Iterable[str]) -> None:
        names = sorted(known)
        parts = [f"unknown method {method!r}", f"known: {', '.join(names) or 'none'}", nearest(method, names)]
        super().__init__("; ".join(part for part in parts if part))
        self.method = method


class NoCapableInstance(RequestError):
    """No instance, up or down, has the capabilities `needed`, such as ``model:llama3``."""

    code = "no_capable_instance"

    def __init__(self, message: str, *, needed: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.needed = tuple(needed)


class Unavailable(RequestError):
    """Instances that could do it are known, and all of them are down."""

    code = "unavailable"
    retryable = True

    def __init__(self, message: str, *, instances: Iterable[str] = (), retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.instances = tuple(instances)
        self.retry_after_s = retry_after_s


class QueueFull(RequestError):
    """The queue for this capability holds `size` of at most `limit`; come back after `retry_after_s` seconds.

    With `shed` it is not quite full: requests of a low priority are turned away so that there is room for others.
    """

    code = "queue_full"
    retryable = True

    def __init__(self, *, size: int, limit: int, retry_after_s: float, shed: bool = False) -> None:
        why = "queue fills up and low priorities are turned away" if shed else "queue is full"
        super().__init__(f"{why}: {size} waiting, limit {limit}; retry after {retry_after_s:.0f} s")
        self.size, self.limit, self.retry_after_s, self.shed = size, limit, retry_after_s, shed


class DeadlineExceeded(RequestError):
    """The request's time ran out, `where` (``queue`` or ``instance``), `after_s` seconds after it was made."""

    code = "deadline_exceeded"
    retryable = True

    def __init__(self, *, where: str, after_s: float) -> None:
        super().__init__(f"deadline exceeded after {after_s:.2f} s, in the {where}")
        self.where, self.after_s = where, after_s


class ShuttingDown(RequestError):
    """Nothing new is taken any more."""

    code = "shutting_down"
    retryable = True


class LeaseExpired(RequestError):
    """The lease of `instance_id` has ended: its time ran out, or it was given back."""

    code = "lease_expired"

    def __init__(self, message: str, *, instance_id: str = "") -> None:
        super().__init__(message)
        self.instance_id = instance_id


class FailureKind(StrEnum):
    """How an instance failed. The kinds are treated differently: see each."""

    REFUSED = "refused"  # it could not be reached at all: down at once, the work never started
    BUSY = "busy"  # it said that it is busy (429, 503): backed off, no mark against it
    UNAUTHORIZED = "unauthorized"  # it refused our credentials (401, 403): shown, and the work never started
    DECLINED = "declined"  # it will not take what another may, as of a request that has been there: never counted
    REJECTED = "rejected"  # it refused the request as wrong (another 4xx): the caller's own, never retried or counted
    SERVER_ERROR = "server_error"  # it failed (5xx) or answered garbage
    TIMEOUT = "timeout"  # it did not answer in time
    LOST = "lost"  # the connection or the instance died while it worked


class InstanceFailure(RequestError):
    """An instance failed. Providers raise it; the dispatcher decides what happens next.

    Its code is ``instance_failure``, or ``rejected`` where it was the caller's own mistake.

    Args:
        kind: How it failed.
        message: A sentence for a person.
        started: Whether the work may have begun. Only what provably did not may go elsewhere when it is not replayable.
        retry_after_s: For ``BUSY``: when the instance asked us to come back, in seconds.
        status: The instance's own status, when it has one.
        body: The instance's own answer, when it has one; passed to a caller who speaks the same API.
        instance_id: Filled in by the dispatcher.
    """

    code = "instance_failure"

    def __init__(
        self,
        kind: FailureKind,
        message: str,
        *,
        started: bool = True,
        retry_after_s: float | None = None,
        status: int | None = None,
        body: bytes | None = None,
        instance_id: str = "",
    ) -> None:
        super().__init__(message)
        self.kind, self.started, self.retry_after_s = kind, started, retry_after_s
        self.status, self.body, self.instance_id = status, body, instance_id
        self.retryable = kind not in (FailureKind.REJECTED, FailureKind.DECLINED, FailureKind.UNAUTHORIZED)
        if kind is FailureKind.REJECTED:
            self.code = "rejected"  # type: ignore[misc]  # nobody who counts failures should count it

    def as_dict(self) -> dict[str, Any]:
        """As for every error, with ``kind`` and ``instance``."""
        return {**super().as_dict(), "kind": self.kind.value, "instance": self.instance_id}


def nearest(name: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?`` for the nearest spelling among `known`, or an empty string."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean {found[0]!r}?" if found else ""
