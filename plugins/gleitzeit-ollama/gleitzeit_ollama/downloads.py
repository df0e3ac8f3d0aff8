"""One download of a model to an Ollama server, step by step.

Ollama answers ``/api/pull`` with 200 before it knows whether it can, and puts a later failure in the stream as
``{"error": ...}``; only a last line with the status ``success`` means that the model is there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_llm.dialects.errors import error_text, message_of
from gleitzeit_llm.dialects.lines import LineBuffer
from gleitzeit_llm.protocol import UpstreamError

if TYPE_CHECKING:
    from gleitzeit_core.resources import HttpChannel, ResourceInstance
    from gleitzeit_llm.upstream import Upstream

PULL_PATH: Final = "/api/pull"
SUCCESS: Final = "success"
_MAX_LINE_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PullProgress:
    """How far a pull is. The last one of a pull that succeeds has the status ``success``.

    Args:
        instance_id: Where to.
        status: The server's own words.
        digest: The part that is being downloaded; empty when it is none.
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


async def download(
    upstream: Upstream, instance: ResourceInstance, channel: HttpChannel, model: str, *, tell: Tell, stall_s: float
) -> PullProgress:
    """Have a server pull a model, and return its last word, ``success``, without telling it.

    Raises:
        InstanceFailure: It could not, broke off, or said nothing for `stall_s` seconds.
    """
    loop, last = asyncio.get_running_loop(), None
    try:
        async with asyncio.timeout(stall_s) as limit:
            payload = {"model": model, "stream": True}
            async with upstream.stream(channel, "POST", PULL_PATH, payload) as response:
                lines = LineBuffer(max_bytes=_MAX_LINE_BYTES)
                async for data in response.content.iter_any():
                    limit.reschedule(loop.time() + stall_s)
                    for line in lines.feed(data):
                        last = _told(last, _progress(instance, model, line), tell)
                last = _told(last, _progress(instance, model, lines.close()), tell)
    except TimeoutError:
        raise _failed(instance, model, FailureKind.TIMEOUT, f"it said nothing for {stall_s:g} s") from None
    except UpstreamError as error:
        raise _failed(instance, model, FailureKind.SERVER_ERROR, error.message) from error
    except InstanceFailure as failure:
        raise _explained(instance, model, failure) from failure
    if last is None or last.status != SUCCESS:
        raise _failed(instance, model, FailureKind.LOST, "its answer ended before the pull did")
    return last


def _told(last: PullProgress | None, now: PullProgress | None, tell: Tell) -> PullProgress | None:
    """Tell each step but success, which is true only when the hub has seen the model."""
    if now is None:
        return last
    if now.status != SUCCESS:
        tell(now)
    return now


def _progress(instance: ResourceInstance, model: str, line: bytes) -> PullProgress | None:
    if not line.strip():
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict) and "error" in value:
        raise _failed(instance, model, FailureKind.SERVER_ERROR, message_of(value) or "it does not say why")
    if not isinstance(value, dict) or not isinstance(value.get("status"), str):
        raise _failed(instance, model, FailureKind.SERVER_ERROR, "its answer is not that of an Ollama server")
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


def _explained(instance: ResourceInstance, model: str, failure: InstanceFailure) -> InstanceFailure:
    """With the server's own words, where it has any."""
    if failure.instance_id:
        return failure
    why = failure.message
    if failure.status is not None:
        why = error_text(failure.status, failure.body or b"")
    return _failed(instance, model, failure.kind, why, failure)


def _failed(
    instance: ResourceInstance, model: str, kind: FailureKind, why: str, cause: InstanceFailure | None = None
) -> InstanceFailure:
    return InstanceFailure(
        kind,
        f"{instance.endpoint} could not pull {model!r}: {why}",
        started=cause is None or cause.started,
        retry_after_s=None if cause is None else cause.retry_after_s,
        status=None if cause is None else cause.status,
        instance_id=instance.id,
    )
