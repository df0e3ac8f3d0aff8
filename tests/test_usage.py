"""What a request is expected to cost, and what its answer took: tokens and bytes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import pytest

from gleitzeit_core.dispatch import DEFAULT_ROUTE, Dispatcher
from gleitzeit_core.errors import FailureKind, InstanceFailure, InvalidRequest
from gleitzeit_core.metrics import Labels, Series
from gleitzeit_core.requests import Request, Usage
from gleitzeit_core.resources import Requirements
from gleitzeit_core.routing import Route
from gleitzeit_core.runs import Run
from gleitzeit_core.testing.clock import ManualClock
from gleitzeit_core.testing.machine import ECHO
from gleitzeit_core.testing.scripted import Call, ScriptedHub, ScriptedProvider
from gleitzeit_core.tries import Try

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gleitzeit_core.resources import Speaks


@dataclass
class Framed:
    """An answer with bytes as its body."""

    body: object


class Telling(ScriptedProvider):
    """Reads the usage from whatever answer is one, or has one in a list; its cost is in the parameters."""

    def usage(self, request: Request, part: Any) -> Usage | None:  # noqa: ANN401 - what a test answers
        """As told; a tuple is what a plugin with a mistake could answer."""
        assert request.method.startswith("echo/")
        if part == "broken":
            raise LookupError("no usage in here")
        found: Any = part if isinstance(part, Usage | tuple) else None
        return cast("Usage | None", found)

    def cost(self, request: Request) -> float:
        """As told."""
        cost: float = request.params.get("cost", 1.0)
        return cost


class Stage:
    """A provider that tells, on a dispatcher whose time stands still."""

    def __init__(self, **instance: Any) -> None:  # noqa: ANN401 - any field
        self.clock = ManualClock()
        self.route = Route(name="all", methods=("*",), strategy=DEFAULT_ROUTE.strategy)
        self.dispatcher = Dispatcher([self.route], clock=self.clock)
        self.hub = ScriptedHub({"a": {"capabilities": frozenset({"model:m", "x"}), **instance}})
        self.provider = Telling()
        self.provider.bind(self.dispatcher)

    async def call(self) -> Call:
        """The next piece of work that the instance was given."""
        return await self.provider.calls.next()

    async def whole(self, answer: object, **fields: Any) -> Any:  # noqa: ANN401 - any field
        """A request that is answered so."""
        request = self.provider.request("echo/say").changed(**fields)
        task = asyncio.create_task(self.dispatcher.one(self.provider, request))
        (await self.call()).finish(answer)
        return (await task).value

    async def streamed(self, *parts: object, **options: Any) -> list[Any]:  # noqa: ANN401 - any option
        """A request that is answered in these parts, a second apart."""
        got = []
        async with self.provider.stream("echo/parts", **options) as stream:
            coming = asyncio.ensure_future(anext(stream, None))
            call = await self.call()
            for part in parts:
                self.clock.advance(1.0)
                call.part(part)
                got.append(await coming)
                coming = asyncio.ensure_future(anext(stream, None))
            call.end()
            assert await coming is None
        return got

    @property
    def series(self) -> Series:
        """The numbers of all tries."""
        return self.dispatcher.metrics.sum()

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes in and out."""
        return self.series.bytes_in, self.series.bytes_out


@contextlib.asynccontextmanager
async def stage(**instance: Any) -> AsyncIterator[Stage]:  # noqa: ANN401 - any field
    """Everything set up; at the end nothing may be left."""
    made = Stage(**instance)
    await made.dispatcher.shell.add_hub(made.hub)
    yield made
    assert made.dispatcher.shell.admission.pool.in_flight == 0
    await made.dispatcher.aclose()


# -- cost ----------------------------------------------------------------------------------------------------------


def test_the_cost_is_the_providers_unless_the_caller_says() -> None:
    """A provider that knows nothing takes all requests for the same."""
    assert ScriptedProvider().request("echo/say").cost == 1.0
    assert Telling().request("echo/say", {"cost": 3.5}).cost == 3.5
    assert Telling().request("echo/say", {"cost": 3.5}, cost=1.0).cost == 1.0
    assert Telling().request("echo/say", {"cost": 3.5}, cost=0.2).cost == 0.2


def test_a_request_that_is_completed_gets_its_cost() -> None:
    """One that says something else than the default keeps that."""
    assert Telling().complete(Request(method="echo/say", params={"cost": 3.5})).cost == 3.5
    assert Telling().complete(Request(method="echo/say", params={"cost": 3.5}, cost=2.0)).cost == 2.0


@pytest.mark.parametrize("cost", [0, -1.0, math.nan, math.inf, -math.inf])
def test_a_cost_that_is_none_is_refused(cost: float) -> None:
    """Fairness could not count with it, whoever says so."""
    with pytest.raises(InvalidRequest, match="cost must be"):
        Telling().request("echo/say", cost=cost)
    with pytest.raises(InvalidRequest, match="cost must be"):
        Telling().request("echo/say", {"cost": cost})
    with pytest.raises(InvalidRequest, match="cost must be"):
        Telling().complete(Request(method="echo/say", cost=cost))


# -- usage ---------------------------------------------------------------------------------------------------------


async def test_a_whole_answer_says_what_it_took() -> None:
    """The time for each token is that of the whole answer."""
    async with stage() as on:
        task = asyncio.create_task(on.provider.execute("echo/say"))
        call = await on.call()
        on.clock.advance(6.0)
        call.finish(Usage(input_tokens=10, output_tokens=3))
        await task
        assert (on.series.input_tokens, on.series.output_tokens) == (10, 3)
        assert on.series.per_token_s.percentile(50) == pytest.approx(2.0, rel=0.01)


async def test_the_last_part_that_says_anything_counts() -> None:
    """Some servers count as they go, some say it before the end; the first output has a time of its own."""
    async with stage() as on:
        parts = ["x", Usage(input_tokens=10, output_tokens=1), "y", Usage(input_tokens=10, output_tokens=4), "z"]
        assert await on.streamed(*parts) == parts
        assert (on.series.input_tokens, on.series.output_tokens) == (10, 4)
        assert on.series.first_output_s.percentile(50) == pytest.approx(1.0, rel=0.01)
        assert on.series.per_token_s.percentile(50) == pytest.approx(4 / 3, rel=0.01)


async def test_an_answer_that_says_nothing_has_no_tokens() -> None:
    """Nor a time for each."""
    async with stage() as on:
        await on.whole("x")
        assert (on.series.input_tokens, on.series.output_tokens, on.series.per_token_s.count) == (0, 0, 0)


async def test_a_provider_that_cannot_tell_fails_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """What it raises is logged; what other parts said counts."""
    async with stage() as on:
        with caplog.at_level(logging.ERROR):
            assert await on.whole("broken") == "broken"
            await on.streamed("x", Usage(output_tokens=7), "broken")
        assert on.series.results == {"ok": 2}
        assert on.series.output_tokens == 7
        assert caplog.text.count("cannot tell the usage of an answer") == 2
        assert "no usage in here" in caplog.text


@pytest.mark.parametrize("answer", [(), (1, 2), ("x",)])
async def test_a_usage_that_is_none_counts_nothing(answer: object) -> None:
    """Whatever a plugin answers, the slot is freed and the numbers stay numbers."""
    async with stage() as on:
        assert await on.whole(answer) is answer
        assert on.series.results == {"ok": 1}
        assert on.series.output_tokens == 0


@pytest.mark.parametrize("count", [-1, 1.0, None, "7", True, math.nan])
def test_tokens_are_whole_numbers(count: Any) -> None:  # noqa: ANN401 - whatever somebody may think of
    """From 0; anything else is refused before it spoils a sum."""
    for name in ("input_tokens", "output_tokens"):
        with pytest.raises(ValueError, match="tokens are whole numbers from 0"):
            Usage(**{name: count})
    assert Usage() == Usage(input_tokens=0, output_tokens=0)


async def test_what_was_cut_off_counts_with_what_came() -> None:
    """A caller that leaves has had tokens and bytes; how long one takes is not known."""
    async with stage() as on:
        stream = on.provider.stream("echo/parts")
        coming = asyncio.ensure_future(anext(stream))
        call = await on.call()
        call.part(Usage(output_tokens=7))
        await coming
        call.part(b"12345")
        assert await anext(stream) == b"12345"
        await stream.aclose()
        assert on.series.results == {"cancelled": 1}
        assert (on.series.output_tokens, on.series.bytes_out, on.series.per_token_s.count) == (7, 5, 0)


# -- bytes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "size"),
    [(b"12345", 5), (Framed(b"123"), 3), (Framed("123"), 0), ("12345", 0), ({"body": b"1"}, 0), (None, 0)],
)
async def test_bytes_of_an_answer(answer: object, size: int) -> None:
    """Of bytes, and of what has bytes as its body; other answers are not measured."""
    async with stage() as on:
        assert await on.whole(answer) is answer
        assert on.sizes == (0, size)


async def test_bytes_of_parts_add_up() -> None:
    """Each counts once, also where the answer comes as one part."""
    async with stage() as on:
        await on.streamed(b"12", "x", Framed(b"345"), b"6")
        assert on.sizes == (0, 6)


async def test_work_that_cannot_be_stopped_is_counted_once() -> None:
    """Its answer is a single part."""
    async with stage(cancellable=False) as on:
        async with on.provider.stream("echo/parts") as stream:
            coming = asyncio.ensure_future(anext(stream))
            (await on.call()).finish(b"1234")
            assert await coming == b"1234"
        assert on.sizes == (0, 4)


async def test_bytes_of_a_request_count_for_each_try() -> None:
    """Each instance was sent them."""
    async with stage() as on:
        task = asyncio.create_task(on.dispatcher.one(on.provider, on.provider.request("echo/say").changed(body=b"123")))
        (await on.call()).refuse(FailureKind.SERVER_ERROR)
        with pytest.raises(InstanceFailure):
            await task
        assert on.sizes == (3, 0)
        await on.whole("x", body=b"4567")
        assert on.sizes == (7, 0)


# -- labels --------------------------------------------------------------------------------------------------------


async def test_tries_are_counted_by_method_instance_route_and_model() -> None:
    """The model is what the request asks for; without one there is none."""
    async with stage() as on:
        for wanted in ("model:m", "x", None):
            params = {} if wanted is None else {"needs": wanted}
            task = asyncio.create_task(on.provider.execute("echo/say", params))
            (await on.call()).finish("x")
            await task
        (report,) = on.dispatcher.reports()
        name = report.instance.id
        assert {labels: series.total_s.count for labels, series in on.dispatcher.metrics} == {
            Labels("echo/say", name, "all", "", "", "ok"): 2,
            Labels("echo/say", name, "all", "m", "", "ok"): 1,
        }


@pytest.mark.parametrize(("accepts", "used"), [((ECHO,), True), ((), False)])
async def test_a_slot_is_used_once_work_begins_on_it(accepts: tuple[Speaks, ...], *, used: bool) -> None:
    """Not while it is only held, nor when there is no way to the instance: such a slot need not be made ready again."""
    async with stage() as on:
        request = on.provider.request("echo/say").changed(requirements=Requirements(accepts=accepts))
        run = Run(request, on.route, on.clock.monotonic(), method=on.provider.method("echo/say"))
        slot = on.dispatcher.shell.admission.submit(run)
        assert slot is not None
        assert not slot.used
        attempt = Try(on.provider, run, slot, shell=on.dispatcher.shell, metrics=on.dispatcher.metrics)
        task = asyncio.create_task(attempt.whole())
        if used:
            (await on.call()).finish("x")
            assert await task == "x"
        else:
            with pytest.raises(InstanceFailure, match="no longer offers"):
                await task
        assert slot.used is used


# -- who watches


async def test_a_watcher_is_told_of_each_request_once() -> None:
    """With what it took, however it ended: well, with an error, or because its caller left, before and within parts."""
    async with stage() as on:
        told: list[tuple[type, Usage | None]] = []

        def watch(run: Run, error: BaseException | None) -> None:
            told.append((type(error), run.outcome.usage if run.outcome is not None else None))

        on.dispatcher.running.watchers += (watch,)
        await on.whole(Usage(input_tokens=3))
        failing = asyncio.create_task(on.provider.execute("echo/say"))
        (await on.call()).refuse(FailureKind.REJECTED)
        await asyncio.wait([failing])
        leaving = asyncio.create_task(on.provider.execute("echo/say"))
        await on.call()
        leaving.cancel()
        await asyncio.wait([failing, leaving])
        async with on.provider.stream("echo/parts") as parts:
            coming = asyncio.ensure_future(anext(parts))
            (await on.call()).part(Usage(output_tokens=4))
            await coming
        assert isinstance(failing.exception(), InstanceFailure)
        assert told == [
            (type(None), Usage(input_tokens=3)),
            (InstanceFailure, None),
            (asyncio.CancelledError, None),
            (GeneratorExit, Usage(output_tokens=4)),
        ]
