"""One try of a request, on an instance it has a slot on."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from gleitzeit_core.errors import DeadlineExceeded, FailureKind, InstanceFailure, InvalidRequest, RequestError
from gleitzeit_core.requests import Outcome, Result, Usage

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    from gleitzeit_core.metrics import ResourceMetrics
    from gleitzeit_core.pool import Slot
    from gleitzeit_core.resources import Channel
    from gleitzeit_core.runs import Executor, Run
    from gleitzeit_core.shell import Shell

logger = logging.getLogger(__name__)

_OK = Result.OK


class Try:
    """One try. Whatever happens in its ``with`` block, its slot is freed once, and callers see only our own errors.

    Args:
        provider: Who carries the request out.
        run: The request.
        slot: Freed when the work has stopped.
        shell: Whose slot it is.
        metrics: Where the outcome is counted.
    """

    __slots__ = (
        *("_bytes_out", "_last", "_metrics", "_provider", "_run", "_shell", "_usage", "put_off", "slot", "source"),
    )

    def __init__(self, provider: Executor, run: Run, slot: Slot, *, shell: Shell, metrics: ResourceMetrics) -> None:
        self._provider, self._run, self.slot = provider, run, slot
        self._shell, self._metrics = shell, metrics
        self._usage: Usage | None = None
        self._bytes_out = 0
        self.source: AsyncIterator[Any] | None = None
        """The parts as the provider gives them, for a reader who has had the first: past the generators between."""
        self.put_off: BaseException | None = None
        """What such a reader met, which `parts` is to raise in turn."""
        self._last: Any = None

    def whole(self) -> Awaitable[Any]:
        """Carry it out; to be awaited at once. Work that cannot be cancelled goes on when its caller leaves.

        It keeps its slot then.
        """
        work = self._execute()
        return work if self.slot.instance.cancellable else asyncio.shield(self._shell.spawn(work))

    async def _execute(self) -> Any:  # noqa: ANN401 - what a method answers is its own
        with self:
            api, channel = self._reach()
            answer = await self._provider.execute_on(self.slot.instance, api, channel, self._run.request)
            self._note(answer)
            return answer

    def parts(self) -> AsyncGenerator[Any, None]:
        """Carry it out in parts. Where it cannot be cancelled it goes on when its caller leaves, and keeps its slot."""
        return self._read() if self.slot.instance.cancellable or self._provider.parts_apart else self._in_one()

    async def _in_one(self) -> AsyncGenerator[Any, None]:
        with self._run:
            part = await self.whole()
        yield part

    async def _read(self) -> AsyncGenerator[Any, None]:
        run, slot = self._run, self.slot
        with self:
            try:
                api, channel = self._reach()
                self.source = source = self._provider.stream_on(slot.instance, api, channel, run.request)
                while True:
                    with run:
                        part = await source.__anext__()
                    self.came(part)
                    run.direct = self
                    yield part
                    if self.put_off is not None:
                        raise self.put_off
            except StopAsyncIteration:
                return
            finally:
                run.direct = self.put_off = None
                # An iterator need not have it; a generator does.
                aclose = getattr(self.source, "aclose", None)
                if aclose is not None:
                    await aclose()

    def came(self, part: Any) -> None:  # noqa: ANN401 - what a method answers is its own
        """A part has come."""
        run, slot = self._run, self.slot
        # An iterator may say so by an attribute of that name.
        run.at_end = getattr(self.source, "at_end", False)
        self._note(part)
        if not slot.progressed:
            run.first_output_s = self._shell.clock.monotonic() - slot.taken_at
            self._shell.admission.progress(slot)

    def _reach(self) -> tuple[str, Channel]:
        instance = self.slot.instance
        found = instance.channel_for(self._run.request.requirements.accepts)
        if found is None:
            text = f"{instance.endpoint} no longer offers what was asked for"
            raise InstanceFailure(FailureKind.SERVER_ERROR, text, started=False)
        self.slot.used = True
        return found

    def _note(self, part: Any) -> None:  # noqa: ANN401 - what a method answers is its own
        """Count what came back: its bytes, where it is bytes or has them as its body, and the work it says it took."""
        self._last = part
        try:
            body = part if isinstance(part, bytes) else getattr(part, "body", None)
            self._bytes_out += len(body) if isinstance(body, bytes) else 0
            said = self._provider.usage(self._run.request, part)
            # A plugin may answer anything; what is counted must be numbers.
            self._usage = said if isinstance(said, Usage) else self._usage
        except Exception:
            logger.exception("%r cannot tell the usage of an answer", self._provider)

    def __enter__(self) -> None:
        """There is nothing to do: the slot is taken already."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            self._release(None)
            return
        name = self.slot.instance.id
        if isinstance(error, InstanceFailure):
            error.instance_id = name
        elif isinstance(error, Exception) and not isinstance(error, RequestError):
            logger.error("%r failed on %s", self._provider, name, exc_info=error)
            failure = InstanceFailure(FailureKind.SERVER_ERROR, sentence(error), instance_id=name)
            self._release(failure)
            raise failure from error
        self._release(error)

    def _release(self, failure: BaseException | None) -> None:
        run, slot, admission = self._run, self.slot, self._shell.admission
        request, name = run.request, slot.instance.id
        needs, body, total_s = request.requirements, request.body, self._shell.clock.monotonic() - slot.taken_at
        result, kind, retry_after_s, first_s = _OK, None, None, run.first_output_s
        if failure is None:
            if first_s is None:
                run.first_output_s = first_s = total_s
        elif not self._has_all(failure):
            result, kind = self._judged(failure)
            retry_after_s = failure.retry_after_s if isinstance(failure, InstanceFailure) else None
        bytes_in = len(body) if slot.used and body is not None else 0
        run.outcome = outcome = Outcome(
            *(result, kind, run.wait_s, first_s, total_s, retry_after_s, self._usage, bytes_in, self._bytes_out),
            needs.tenant,
        )
        name = name if name in admission.pool.records else self._metrics.GONE
        model = needs.model if needs.capabilities else ""
        self._metrics.record(request.method, name, outcome, route=run.route.name, model=model, api=request.dialect)
        if failure is None or isinstance(failure, InstanceFailure) or not self._lingers(outcome):
            admission.release(run, slot, outcome)

    def _lingers(self, outcome: Outcome) -> bool:
        """Whether some of the work goes on although its caller has left. The slot is freed when that has stopped."""
        run, slot, admission = self._run, self.slot, self._shell.admission
        lingering = self._told(self._provider.lingering, slot.instance, run.request)
        if asyncio.isfuture(lingering):
            lingering.add_done_callback(lambda _: admission.release(run, slot, outcome))
            return True
        if lingering is not None:
            logger.error("%r: what lingers is no future, but %r", self._provider, lingering)
        return False

    def _has_all(self, failure: BaseException) -> bool:
        """Whether its caller has left with all of the answer."""
        left = isinstance(failure, asyncio.CancelledError | GeneratorExit)
        return left and self.slot.progressed and bool(self._told(self._provider.is_last, self._run.request, self._last))

    def _told(self, ask: Callable[..., Any], *about: Any) -> Any:  # noqa: ANN401 - a plugin may answer anything
        """What a plugin says. Its slot is freed even if it fails."""
        try:
            return ask(*about)
        except Exception:
            logger.exception("%r failed", self._provider)
            return None

    def _judged(self, failure: BaseException) -> tuple[Result, FailureKind | None]:
        if isinstance(failure, InstanceFailure):
            return Result.FAILED, failure.kind
        if isinstance(failure, InvalidRequest):
            return Result.FAILED, FailureKind.REJECTED
        # Its caller left, or its time ran out. Only our own, long deadline without any output counts as a failure.
        run, late = self._run, isinstance(self._run.ending, DeadlineExceeded)
        if late and run.request.deadline is None and not self.slot.progressed:
            return Result.FAILED, FailureKind.TIMEOUT
        return Result.CANCELLED, None


def sentence(error: Exception) -> str:
    """What a provider raised that it should not have, for a person. What else it says, secrets maybe, is in the log."""
    return f"provider failed: {type(error).__name__}"
