"""What a provider that brings its own hub answers, and how it is opened."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from pydantic import ValidationError

from gleitzeit_core.errors import InstanceFailure, InvalidRequest, Unavailable
from gleitzeit_core.hub_provider import PoolOptions
from gleitzeit_core.resources import CallChannel

from .steps import Steps, StepsOptions, steps


async def test_what_it_raises_counts_against_the_resource_unless_the_caller_is_wrong() -> None:
    """`InvalidRequest` is the caller's."""
    async with steps(max_total=1) as on:
        for error, expected in ((InvalidRequest("no"), InvalidRequest), (LookupError("oops"), InstanceFailure)):
            task = on.ask()
            if not on.make_hub().instances:
                (await on.creations.next()).finish(1)
            (await on.works.next()).fail(error)
            with pytest.raises(expected):
                await task
        assert on.dispatcher.metrics.sum().results == {"rejected": 1, "server_error": 1}


async def test_without_a_stream_of_its_own_the_answer_is_one_part() -> None:
    """A method may be asked for in parts all the same."""
    async with steps() as on:
        reading = asyncio.create_task(_all(on.stream("steps/do")))
        (await on.creations.next()).finish(1)
        (await on.works.next()).finish("whole")
        assert await reading == ["whole"]


async def _all(parts: Any) -> list[Any]:  # noqa: ANN401 - a stream
    return [part async for part in parts]


async def test_others_may_call_its_resources() -> None:
    """A provider of the same api reaches them by call: JSON there, JSON back."""
    async with steps() as on:
        task = on.ask()
        (await on.creations.next()).finish(1)
        (await on.works.next()).finish()
        await task
        (instance,) = on.make_hub().instances
        _, channel = instance.offers[0]
        assert isinstance(channel, CallChannel)
        calling = asyncio.create_task(channel.call(json.dumps({"method": "steps/do"}).encode()))
        (await on.works.next()).finish([1])
        assert await calling == b"[1]"
        for wrong in (b"no", b"[]", b"{}"):
            with pytest.raises(InvalidRequest, match="not a call"):
                await channel.call(wrong)
        on.make_hub().withdraw(instance.id, "gone")
        with pytest.raises(InstanceFailure, match="is gone") as caught:
            await channel.call(b'{"method": "steps/do"}')
        assert not caught.value.started


async def test_it_can_be_opened_again() -> None:
    """Also after a creation had failed."""
    provider = Steps(StepsOptions(max_total=1))
    for handle in (1, 2):
        async with provider:
            task = provider.ask()
            (await provider.creations.next()).finish(handle)
            (await provider.works.next()).finish("done")
            assert await task == "done"
            provider.dispatcher.shell.admission.drain(provider.make_hub().instances[0].id)
            task = provider.ask()
            (await provider.creations.next()).fail(LookupError("no"))
            with pytest.raises(Unavailable):
                await task
    assert provider.destroyed == [1, 2]


@pytest.mark.parametrize("wrong", [{"min_total": 3, "max_total": 2}, {"max_total": 0}, {"size": 3}])
def test_bounds_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    """Before anything is created."""
    with pytest.raises(ValidationError):
        PoolOptions(**wrong)
