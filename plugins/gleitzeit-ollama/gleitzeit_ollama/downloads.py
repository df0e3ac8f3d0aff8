"""What an Ollama server does step by step: pulls, pushes, creations of models.

Ollama answers ``/api/pull`` with 200 before it knows whether it can, and puts a later failure in the stream as
``{"error": ...}``; only a last line with the status ``success`` means that it is done.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypedDict

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_llm.dialects.errors import error_text, message_of
from gleitzeit_llm.dialects.lines import LineBuffer
from gleitzeit_llm.protocol import UpstreamError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Unpack

    from gleitzeit_core.resources import HttpChannel, ResourceInstance
    from gleitzeit_llm.upstream import Upstream

SUCCESS: Final = "success"
_MAX_LINE_BYTES: Final = 1024 * 1024
# What Ollama answers where the same failure is no line of a stream.
IN_BAND: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class PullProgress:
    """How far a pull, a push or a creation is. The last one of what succeeds has the status ``success``.

    Args:
        instance_id: Where to.
        status: The server's own words.
        digest: The part that is being transferred; empty when it is none.
        total_bytes: The size of that part; None when unknown.
        completed_bytes: What of it is there; None when unknown.
    """

    instance_id: str
    status: str
    digest: str = ""
    total_bytes: int | None = None
    completed_bytes: int | None = None


Tell: TypeAlias = Callable[[PullProgress], None]
"""Called with each step; must return at once."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a server is asked to do and tells the progress of.

    Args:
        verb: For errors: ``pull``, ``push``, ``create``; also the last word of the path.
        model: Its name.
        fields: The body but for ``model`` and ``stream``.
    """

    verb: str
    model: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """Where it is asked for."""
        return f"/api/{self.verb}"

    @property
    def payload(self) -> dict[str, Any]:
        """The body. Steps are always asked for: they also tell a server that works from one that hangs."""
        return {**self.fields, "model": self.model, "stream": True}


async def carry_out(
    upstream: Upstream, instance: ResourceInstance, channel: HttpChannel, job: Job, *, tell: Tell, stall_s: float
) -> PullProgress:
    """Have a server do a job, and return its last word, ``success``, without telling it.

    Raises:
        InstanceFailure: It could not, broke off, or said nothing for `stall_s` seconds. What the server itself said of
            it is the failure's `body`.
    """
    loop, last = asyncio.get_running_loop(), None
    try:
        async with asyncio.timeout(stall_s) as limit:
            async with upstream.stream(channel, "POST", job.path, job.payload) as response:
                lines = LineBuffer(max_bytes=_MAX_LINE_BYTES)
                async for data in response.content.iter_any():
                    limit.reschedule(loop.time() + stall_s)
                    for line in lines.feed(data):
                        last = _told(last, _progress(instance, job, line), tell)
                last = _told(last, _progress(instance, job, lines.close()), tell)
    except TimeoutError:
        raise _failed(instance, job, FailureKind.TIMEOUT, f"it said nothing for {stall_s:g} s") from None
    except UpstreamError as error:
        raise _failed(instance, job, FailureKind.SERVER_ERROR, error.message) from error
    except InstanceFailure as failure:
        raise _explained(instance, job, failure) from failure
    if last is None or last.status != SUCCESS:
        raise _failed(instance, job, FailureKind.LOST, f"its answer ended before the {job.verb} did")
    return last


def _told(last: PullProgress | None, now: PullProgress | None, tell: Tell) -> PullProgress | None:
    """Tell each step but success, which is true only when the hub has seen the model."""
    if now is None:
        return last
    if now.status != SUCCESS:
        tell(now)
    return now


def _progress(instance: ResourceInstance, job: Job, line: bytes) -> PullProgress | None:
    if not line.strip():
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict) and "error" in value:
        why = message_of(value) or "it does not say why"
        raise _failed(instance, job, FailureKind.SERVER_ERROR, why, status=IN_BAND, body=line.strip())
    if not isinstance(value, dict) or not isinstance(value.get("status"), str):
        raise _failed(instance, job, FailureKind.SERVER_ERROR, "its answer is not that of an Ollama server")
    digest = value.get("digest")
    return PullProgress(
        instance_id=instance.id,
        status=value["status"],
        digest=digest if isinstance(digest, str) else "",
        total_bytes=_bytes(value.get("total")),
        completed_bytes=_bytes(value.get("completed")),
    )


def _bytes(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _explained(instance: ResourceInstance, job: Job, failure: InstanceFailure) -> InstanceFailure:
    """With the server's own words, where it has any."""
    if failure.instance_id:
        return failure
    why = failure.message
    if failure.status is not None:
        why = error_text(failure.status, failure.body or b"")
    return _failed(
        instance,
        job,
        failure.kind,
        why,
        started=failure.started,
        retry_after_s=failure.retry_after_s,
        status=failure.status,
        body=failure.body,
    )


def _failed(
    instance: ResourceInstance, job: Job, kind: FailureKind, why: str, **known: Unpack[_Known]
) -> InstanceFailure:
    return InstanceFailure(
        kind, f"{instance.endpoint} could not {job.verb} {job.model!r}: {why}", instance_id=instance.id, **known
    )


class _Known(TypedDict, total=False):
    started: bool
    retry_after_s: float | None
    status: int | None
    body: bytes | None
