"""One try of a request, on an instance it has a slot on."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Self

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
    """One try. Whatever happens in it, its slot is freed once, and callers see only our own errors.

    Made for every request: what is not given begins with the values of the class, and costs nothing until it changes.

    Args:
        provider: Who carries the request out.
        run: The request.
        slot: Freed when the work has stopped.
        shell: Whose slot it is.
        metrics: Where the outcome is counted.
    """

    _source: AsyncIterator[Any] | None = None
    _ended: bool = False
    _usage: Usage | None = None
    _bytes_out: int = 0
    _last: Any = None

    def __init__(self, provider: Executor, run: Run, slot: Slot, *, shell: Shell, metrics: ResourceMetrics) -> None:
        self._provider, self._run, self.slot, self._shell, self._metrics = provider, run, slot, shell, metrics

    def whole(self) -> Awaitable[Any]:
        """Carry it out; to be awaited at once. Work that cannot be cancelled goes on when its caller leaves.

        It keeps its slot then.
        """
        work = self._execute()
        return work if self.slot.instance.cancellable else asyncio.shield(self._shell.spawn(work))

    async def _execute(self) -> Any:  # noqa: ANN401 - what a method answers is its own
        try:
            api, channel = self._reach()
            answer = await self._provider.execute_on(self.slot.instance, api, channel, self._run.request)
            self._note(answer)
        except BaseException as error:
            self._fail(error)
            raise
        self._release(None)
        return answer

    def parts(self) -> AsyncGenerator[Any, None] | Self:
        """Carry it out in parts. Where it cannot be cancelled it goes on when its caller leaves, and keeps its slot."""
        return self if self.slot.instance.cancellable or self._provider.parts_apart else self._in_one()

    async def _in_one(self) -> AsyncGenerator[Any, None]:
        with self._run:
            part = await self.whole()
        yield part

    def __aiter__(self) -> Self:
        """Its parts."""
        return self

    async def __anext__(self) -> Any:  # noqa: ANN401 - what a method answers is its own
        """The next part."""
        if self._ended:
            raise StopAsyncIteration
        run = self._run
        try:
            if self._source is None:
                api, channel = self._reach()
                self._source = self._provider.stream_on(self.slot.instance, api, channel, run.request)
            with run:
                part = await self._source.__anext__()
            self._came(part)
            if run.at_end:
                await self._stop(None)
        except BaseException as error:
            await self._stop(error)
            raise
        return part

    async def aclose(self) -> None:
        """Stop the work, if it has begun and not ended; its slot is freed when it has stopped."""
        if self._source is not None and not self._ended:
            await self._stop(GeneratorExit())

    async def _stop(self, end: BaseException | None) -> None:
        """It has come to its `end`: close what gives the parts, then free the slot. May raise our own error instead.

        Args:
            end: How; None when all has come.
        """
        if self._ended:
            return
        self._run.direct, self._ended = None, True
        try:
            # An iterator need not have it; a generator does.
            aclose = getattr(self._source, "aclose", None)
            if aclose is not None:
                await aclose()
        except BaseException as error:
            # Who was cancelled stays so, however badly the source closes.
            if not (isinstance(end, asyncio.CancelledError) and isinstance(error, Exception)):
                self._fail(error)
                raise
        if end is None or isinstance(end, StopAsyncIteration):
            self._release(None)
        else:
            self._fail(end)

    def _came(self, part: Any) -> None:  # noqa: ANN401 - what a method answers is its own
        """A part has come."""
        run, slot, self._last = self._run, self.slot, part
        # An iterator may say so by an attribute of that name.
        run.at_end = getattr(self._source, "at_end", False)
        self._note(part)
        if not slot.progressed:
            run.direct, run.first_output_s = self, self._shell.clock.monotonic() - slot.taken_at
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
        try:
            body = part if isinstance(part, bytes) else getattr(part, "body", None)
            self._bytes_out += len(body) if isinstance(body, bytes) else 0
            said = self._provider.usage(self._run.request, part)
            # A plugin may answer anything; what is counted must be numbers.
            if isinstance(said, Usage):
                self._usage = said
        except Exception:
            logger.exception("%r cannot tell the usage of an answer", self._provider)

    def _fail(self, error: BaseException) -> None:
        """It has ended with `error`; raise our own in place of one that is not."""
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
        asked, name, total_s = run.request, slot.instance.id, self._shell.clock.monotonic() - slot.taken_at
        needs, body, first_s = asked.requirements, asked.body, run.first_output_s
        result, kind, retry_s = _OK, None, None
        if failure is None:
            if first_s is None:
                run.first_output_s = first_s = total_s
        elif not self._has_all(failure):
            result, kind = self._judged(failure)
            retry_s = failure.retry_after_s if isinstance(failure, InstanceFailure) else None
        sent = len(body) if body is not None and slot.used else 0
        values = (result, kind, run.wait_s, first_s, total_s, retry_s, self._usage, sent, self._bytes_out, needs.tenant)
        # Past the call that a named tuple's own way to make one is.
        run.outcome = outcome = tuple.__new__(Outcome, values)
        if name not in admission.pool.records:
            name = self._metrics.GONE
        self._metrics.record(asked.method, name, outcome, route=run.route.name, model=needs.model, api=asked.dialect)
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
