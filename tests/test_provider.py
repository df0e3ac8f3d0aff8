"""The three ways to hold a provider, and what it checks before anything is sent."""

from __future__ import annotations

import asyncio
import pickle
from dataclasses import FrozenInstanceError
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.dispatch import Dispatcher
from gleitzeit_core.errors import ClosedError, InvalidRequest, NoCapableInstance, UnknownMethod
from gleitzeit_core.provider import Provider
from gleitzeit_core.requests import Method, Request, new_request
from gleitzeit_core.testing.contract import ContractProvider
from gleitzeit_core.testing.scripted import ScriptedHub, ScriptedProvider
from gleitzeit_core.testing.todo import Todo, turns

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gleitzeit_core.hub import ResourceHub
    from gleitzeit_core.resources import ResourceInstance


class Gated(ScriptedHub):
    """Starts when a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.starts: list[Todo] = []
        self.ends: list[Todo] = []
        self.slow_end = False

    async def discover(self) -> Iterable[ResourceInstance]:
        """Waits."""
        self.starts.append(Todo("start"))
        await self.starts[-1].wait()
        return await super().discover()

    async def close(self) -> None:
        """Waits, if it is to be slow."""
        await super().close()
        if self.slow_end:
            self.ends.append(Todo("end"))
            await self.ends[-1].wait()


# -- three ways -----------------------------------------------------------------------------------------------------------


async def test_alone_it_makes_and_owns_its_hub() -> None:
    """Open in a block, with all that it needs."""
    async with ScriptedProvider() as provider:
        provider.auto = True
        assert await provider.execute("echo/say") == "a"
        assert provider.opened == 1
    assert provider.opened == 0


async def test_two_on_one_hub_count_the_same_slots() -> None:
    """One waits while the other works, though they know nothing of each other."""
    hub = ScriptedHub({"a": {"max_concurrent": 1}})
    async with ScriptedProvider(hub=hub) as one, ScriptedProvider(hub=hub) as other:
        assert one.dispatcher is other.dispatcher
        first = asyncio.create_task(one.execute("echo/say"))
        call = await one.calls.next()
        second = asyncio.create_task(other.execute("echo/say"))
        await turns()
        assert not other.calls.all
        call.finish(1)
        (await other.calls.next()).finish(2)
        assert await asyncio.gather(first, second) == [1, 2]


async def test_the_last_one_out_closes() -> None:
    """Whoever came first."""
    hub = ScriptedHub()
    one, other = ScriptedProvider(hub=hub), ScriptedProvider(hub=hub)
    await one.__aenter__()
    async with other:
        await one.__aexit__(None, None, None)
        assert (hub.running, hub.closed) == (True, 0)
        other.auto = True
        assert await other.execute("echo/say") == "a"
    assert (hub.running, hub.closed) == (False, 1)


async def test_with_a_manager_it_is_bound() -> None:
    """Somebody else's dispatcher, somebody else's life."""
    dispatcher = Dispatcher()
    await dispatcher.shell.add_hub(ScriptedHub())
    provider = ScriptedProvider()
    provider.bind(dispatcher)
    provider.auto = True
    assert await provider.execute("echo/say") == "a"
    await dispatcher.aclose()


async def test_who_comes_while_the_hub_starts_waits_for_it() -> None:
    """Or it would find no instance."""
    hub = Gated()
    one, other = ScriptedProvider(hub=hub), ScriptedProvider(hub=hub)
    opening = [asyncio.create_task(provider.__aenter__()) for provider in (one, other)]
    await turns()
    assert len(hub.starts) == 1
    assert not any(task.done() for task in opening)
    hub.starts[0].finish()
    await asyncio.gather(*opening)
    other.auto = True
    assert await other.execute("echo/say") == "a"
    for provider in (one, other):
        await provider.__aexit__(None, None, None)
    assert hub.closed == 1


async def test_who_comes_while_the_hub_stops_starts_it_again() -> None:
    """It does not get what is just being closed."""
    hub = Gated()
    hub.slow_end = True
    provider, late = ScriptedProvider(hub=hub), ScriptedProvider(hub=hub)
    opening = asyncio.create_task(provider.__aenter__())
    await turns()
    hub.starts[0].finish()
    await opening
    closing = asyncio.create_task(provider.__aexit__(None, None, None))
    await turns()
    opening = asyncio.create_task(late.__aenter__())
    await turns()
    assert len(hub.starts) == 1
    hub.slow_end = False
    hub.ends[0].finish()
    await closing
    await turns()
    hub.starts[1].finish()
    await opening
    late.auto = True
    assert await late.execute("echo/say") == "a"
    await late.__aexit__(None, None, None)


async def test_a_hub_that_does_not_start_leaves_the_next_one_to_try() -> None:
    """The provider is closed again, and so is all that was begun."""
    before = asyncio.all_tasks()
    hub = Gated()
    one, other = ScriptedProvider(hub=hub), ScriptedProvider(hub=hub)
    opening = [asyncio.create_task(provider.__aenter__()) for provider in (one, other)]
    await turns()
    hub.starts[0].fail(LookupError("not now"))
    with pytest.raises(LookupError, match="not now"):
        await opening[0]
    assert one.opened == 0
    await turns()
    hub.starts[1].finish()
    await opening[1]
    await other.__aexit__(None, None, None)
    await turns()
    assert asyncio.all_tasks() == before


async def test_a_start_that_is_cancelled_leaves_nothing() -> None:
    """Neither open nor half open."""
    before = asyncio.all_tasks()
    hub = Gated()
    provider = ScriptedProvider(hub=hub)
    opening = asyncio.create_task(provider.__aenter__())
    await turns()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert (provider.opened, hub.closed) == (0, 1)
    await turns()
    assert asyncio.all_tasks() == before


async def test_one_that_cannot_be_opened_is_not_closed() -> None:
    """And its hub is never started."""

    class Failing(ScriptedProvider):
        async def open(self) -> None:
            raise LookupError("no client")

    hub = Gated()
    provider = Failing(hub=hub)
    with pytest.raises(LookupError, match="no client"):
        await provider.__aenter__()
    assert (provider.opened, hub.starts) == (0, [])


async def test_what_runs_when_it_is_closed_ends() -> None:
    """The provider is closed after its work, not under it."""
    provider = ScriptedProvider()
    async with provider:
        task = asyncio.create_task(provider.execute("echo/say"))
        call = await provider.calls.next()
    with pytest.raises(Exception, match="shutting down"):
        await task
    assert call.stopped.is_set()


async def test_it_is_not_opened_twice() -> None:
    """The second time is refused, and harms nothing."""
    async with ScriptedProvider() as provider:
        with pytest.raises(ClosedError, match="open already"):
            await provider.__aenter__()
        provider.auto = True
        assert await provider.execute("echo/say") == "a"


async def test_one_without_a_hub_of_its_own_says_so() -> None:
    """And what to do."""

    class Homeless(ScriptedProvider):
        def make_hub(self) -> ScriptedHub:
            return Provider.make_hub(self)  # type: ignore[return-value]

    provider = Homeless()
    with pytest.raises(ClosedError, match="give it one, or use it through a ResourceManager"):
        await provider.__aenter__()
    assert provider.opened == 0
    with pytest.raises(ClosedError, match="is not open"):
        await provider.execute("echo/say")


async def test_hubs_that_nobody_uses_are_forgotten() -> None:
    """Sharing a hub does not keep it alive."""
    import gc  # noqa: PLC0415 - for this one
    import weakref  # noqa: PLC0415

    async def use() -> weakref.ref[ResourceHub[Any]]:
        hub = ScriptedHub()
        async with ScriptedProvider(hub=hub):
            return weakref.ref(hub)

    found = await use()
    gc.collect()
    assert found() is None


# -- requests -----------------------------------------------------------------------------------------------------------------


async def test_what_a_caller_says_is_in_the_request() -> None:
    """Every option has its place."""
    provider = ScriptedProvider()
    request = provider.request(
        "echo/say",
        {"n": 1},
        priority=3,
        tenant="t",
        affinity="session",
        cost=2.5,
        idempotency_key="k",
        tags=["gpu"],
        instances=["one"],
    )
    assert (request.priority, request.tenant, request.affinity) == (3, "t", "session")
    assert (request.cost, request.idempotency_key, request.deadline) == (2.5, "k", None)
    assert (request.requirements.tags, request.requirements.instances) == (frozenset({"gpu"}), frozenset({"one"}))
    assert request.params == {"n": 1}
    assert len(request.id) == 16
    assert request.id != provider.request("echo/say").id


async def test_a_timeout_is_a_deadline_on_the_wall_clock() -> None:
    """Of the dispatcher it is bound to; a request may leave this process."""
    async with ScriptedProvider() as provider:
        before = provider.dispatcher.clock.wall()
        deadline = provider.request("echo/say", timeout_s=10.0).deadline
        assert deadline is not None
        assert before + 10.0 <= deadline <= provider.dispatcher.clock.wall() + 10.0
        assert provider.request("echo/say", timeout_s=None).deadline is None


def test_an_unknown_method_is_answered_with_the_nearest() -> None:
    """Spelt as it is."""
    with pytest.raises(UnknownMethod, match="did you mean 'echo/say'"):
        ScriptedProvider().request("echo/sya")


def test_parameters_are_checked_and_passed_on_as_they_were_given() -> None:
    """Defaults are the instance's business; what is wrong is named."""
    provider = ContractProvider()
    assert provider.request("contract/run").params == {}
    assert provider.request("contract/run", {"text": "x"}).params == {"text": "x"}
    with pytest.raises(InvalidRequest, match=r"contract/run: more: Extra inputs") as caught:
        provider.request("contract/run", {"more": 1})
    assert caught.value.param == "more"


def test_a_new_request_is_like_any_other() -> None:
    """It has all its fields, with their defaults and an id of its own, and cannot be changed."""
    made, other = new_request(method="a/b", tenant="t"), new_request(method="a/b", tenant="t")
    assert type(made) is Request
    assert made == Request(method="a/b", tenant="t", id=made.id)
    assert made.id != other.id
    assert pickle.loads(pickle.dumps(made.changed(params={}))) == made.changed(params={})  # noqa: S301 - our own
    with pytest.raises(FrozenInstanceError):
        made.tenant = "u"  # type: ignore[misc]
    with pytest.raises(TypeError, match="nope"):
        new_request(method="a/b", nope=1)


def test_a_request_can_be_completed_later() -> None:
    """One that was made elsewhere, such as from a queue; the first is not changed."""
    provider = ScriptedProvider()
    raw = Request(method="echo/say", params={"needs": "x"})
    complete = provider.complete(raw, tags=["t"])
    assert complete.requirements.capabilities == frozenset({"x"})
    assert complete.requirements.tags == frozenset({"t"})
    assert raw.requirements.accepts == ()


async def test_a_local_method_that_nobody_answers_is_unknown() -> None:
    """The default says which there are."""

    class Silent(ScriptedProvider):
        methods = (Method(name="echo/names", summary="names", replayable=True, local=True),)
        answer = Provider.answer

    async with Silent() as provider:
        with pytest.raises(UnknownMethod, match="echo/names"):
            await provider.execute("echo/names")


async def test_a_provider_shows_what_it_is_bound_to() -> None:
    """With counts."""
    provider = ScriptedProvider()
    assert repr(provider) == "<ScriptedProvider echo, None>"
    async with provider:
        assert repr(provider).startswith("<ScriptedProvider echo, <Dispatcher 0 requests")
        with pytest.raises(NoCapableInstance, match="tag:gpu"):
            await provider.execute("echo/say", tags=["gpu"])
