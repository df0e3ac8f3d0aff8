# ruff: noqa: S101 - assertions are what these classes are made of
"""What every provider must do."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

from gleitzeit_core.errors import ClosedError, InvalidRequest, UnknownMethod
from gleitzeit_core.testing.conformance.base import PATIENCE_S, Conformance, no_task_is_left

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gleitzeit_core.provider import Provider


class ProviderConformance(Conformance):
    """What every provider must do."""

    example: ClassVar[tuple[str, Mapping[str, Any]]]
    """A method, and parameters with which it succeeds."""
    invalid: ClassVar[tuple[str, Mapping[str, Any]] | None] = None
    """A method, and parameters that it must refuse; None when it takes any."""
    streams: ClassVar[bool] = False
    """Whether the example's method answers in parts."""

    @abstractmethod
    async def make_provider(self) -> Provider[Any]:
        """A provider that was not opened, with a hub of its own or a given one."""

    async def test_its_methods_are_its_protocols(self) -> None:
        """Each is named after it, and there once."""
        provider = await self.make_provider()
        assert provider.methods
        assert provider.accepts
        assert max(Counter(method.name for method in provider.methods).values()) == 1
        assert all(method.name.startswith(f"{provider.protocol}/") for method in provider.methods)
        assert all(method.summary for method in provider.methods)

    async def test_an_unknown_method_is_refused(self) -> None:
        """By its name, with those there are."""
        provider = await self.make_provider()
        message = ""
        try:
            provider.request(f"{provider.protocol}/no-such-method")
        except UnknownMethod as error:
            message = error.message
        assert provider.methods[0].name in message

    async def test_it_must_be_opened(self) -> None:
        """Before that, it says how."""
        provider = await self.make_provider()
        try:
            await provider.execute(*self.example)
        except ClosedError:
            return
        raise AssertionError("it works without being opened")

    async def test_the_example_is_carried_out(self) -> None:
        """Once, several times at once, and nothing is in flight afterwards."""
        async with asyncio.timeout(PATIENCE_S), await self.make_provider() as provider:
            await provider.execute(*self.example)
            await asyncio.gather(*(provider.execute(*self.example) for _ in range(3)))
            assert provider.dispatcher.active == 0
            await self._idle(provider)

    async def test_it_opens_and_closes_more_than_once(self) -> None:
        """And leaves no task behind."""
        before, provider = asyncio.all_tasks(), await self.make_provider()
        for _ in range(2):
            async with asyncio.timeout(PATIENCE_S), provider:
                await provider.execute(*self.example)
        await no_task_is_left(before)

    async def test_wrong_parameters_are_the_callers_fault(self) -> None:
        """They are refused, and no instance is blamed."""
        if self.invalid is None:
            return
        async with await self.make_provider() as provider:
            try:
                await provider.execute(*self.invalid)
            except InvalidRequest:
                assert provider.dispatcher.metrics.sum().success_rate == 1.0
                return
        raise AssertionError("it takes wrong parameters")

    async def test_a_caller_that_leaves_frees_its_slot(self) -> None:
        """As soon as the work has stopped."""
        async with asyncio.timeout(PATIENCE_S), await self.make_provider() as provider:
            task = asyncio.create_task(provider.execute(*self.example))
            while not task.done() and not provider.dispatcher.shell.admission.pool.in_flight:  # noqa: ASYNC110 - no event
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self._idle(provider)
            await provider.execute(*self.example)

    async def test_an_answer_in_parts_comes_whole(self) -> None:
        """With at least one part, and says who served it."""
        if not self.streams:
            return
        async with asyncio.timeout(PATIENCE_S), await self.make_provider() as provider:
            stream = provider.stream(*self.example)
            parts = [part async for part in stream]
            assert parts
            assert stream.served.instance_id
            await self._idle(provider)

    async def test_a_stream_that_is_left_early_frees_its_slot(self) -> None:
        """Leaving cancels the work."""
        if not self.streams:
            return
        async with asyncio.timeout(PATIENCE_S), await self.make_provider() as provider:
            async with provider.stream(*self.example) as stream:
                await anext(stream)
            await self._idle(provider)
            await provider.execute(*self.example)

    @staticmethod
    async def _idle(provider: Provider[Any]) -> None:
        # An instance may have to be made ready again after its use.
        while provider.dispatcher.shell.admission.pool.in_flight:  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0)
