"""Each kind of channel, driven: http on a real socket, stream in memory, call with the contract hub."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from gleitzeit_core.dispatch import Dispatcher
from gleitzeit_core.errors import FailureKind, InstanceFailure, InvalidRequest
from gleitzeit_core.resources import Requirements
from gleitzeit_core.testing.conformance import HubConformance, ProviderConformance
from gleitzeit_core.testing.contract import CONTRACT, ContractHub, ContractOptions, ContractProvider
from gleitzeit_core.testing.scripted import ScriptedHub
from gleitzeit_core.testing.streams import StreamHub, StreamProvider
from gleitzeit_core.testing.web import WebHub, WebProvider, WebServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from gleitzeit_core.hub import ResourceHub
    from gleitzeit_core.provider import Provider


# -- all that every hub and every provider must do -----------------------------------------------------------------------


class TestContractHub(HubConformance):
    """Exclusive, created, called, not to be cancelled, used up."""

    creates = True
    limit = 2
    requirements = Requirements(accepts=(CONTRACT,))

    async def make_hub(self) -> ResourceHub[Any]:
        """One that answers at once."""
        return ContractHub(ContractOptions(auto=True))


class TestScriptedHub(HubConformance):
    """A fixed set of instances."""

    async def make_hub(self) -> ResourceHub[Any]:
        """Two."""
        return ScriptedHub(("a", "b"))


class TestStreamHub(HubConformance):
    """Reached by duplex bytes."""

    async def make_hub(self) -> ResourceHub[Any]:
        """Two pipes."""
        return StreamHub(size=2)


class TestWebHub(HubConformance):
    """Reached over HTTP."""

    server: WebServer

    @pytest.fixture(autouse=True)
    async def _listen(self) -> AsyncIterator[None]:
        async with WebServer() as self.server:
            yield

    async def make_hub(self) -> ResourceHub[Any]:
        """One server."""
        return WebHub(self.server.url)


class TestContractProvider(ProviderConformance):
    """By call."""

    example: ClassVar[tuple[str, Mapping[str, Any]]] = ("contract/run", {"text": "hello"})
    invalid = ("contract/run", {"text": 1, "other": 2})

    async def make_provider(self) -> Provider[Any]:
        """With a hub of its own."""
        return ContractProvider()


class TestContractStream(ProviderConformance):
    """By call, in one part."""

    example: ClassVar[tuple[str, Mapping[str, Any]]] = ("contract/read", {"text": "hello"})
    streams = True

    async def make_provider(self) -> Provider[Any]:
        """With a hub of its own."""
        return ContractProvider()


class TestStreamProvider(ProviderConformance):
    """By stream."""

    example: ClassVar[tuple[str, Mapping[str, Any]]] = ("counter/count", {"to": 50})
    streams = True

    async def make_provider(self) -> Provider[Any]:
        """With a hub of its own."""
        return StreamProvider()


class TestWebProvider(ProviderConformance):
    """By HTTP."""

    example: ClassVar[tuple[str, Mapping[str, Any]]] = ("web/get", {})
    streams = True
    server: WebServer

    @pytest.fixture(autouse=True)
    async def _listen(self) -> AsyncIterator[None]:
        async with WebServer() as self.server:
            yield

    async def make_provider(self) -> Provider[Any]:
        """With one server."""
        return WebProvider(hub=WebHub(self.server.url))


# -- call ---------------------------------------------------------------------------------------------------------------


async def test_a_request_waits_until_its_instance_is_created() -> None:
    """Created for it, called once, and retired after use."""
    hub = ContractHub()
    async with ContractProvider(hub=hub) as provider:
        task = asyncio.create_task(provider.execute("contract/run", {"text": "hello"}))
        creation = await hub.creations.next()
        assert [report.state for report in provider.dispatcher.reports()] == ["starting"]
        assert provider.dispatcher.shell.admission.waiting == 1
        creation.finish()
        call = await hub.calls.next()
        assert call.what == '{"text": "hello"}'
        call.finish(b'{"said": 1}')
        assert await task == {"said": 1}
        assert hub.recycled == ["box-1"]
        assert hub.retired == ["box-1"]
        assert not hub.instances


async def test_a_use_leaves_a_clean_instance_for_the_next() -> None:
    """It is recycled between two uses, and retired after the last it may have."""
    hub = ContractHub(ContractOptions(auto=True, uses=3, limit=1))
    async with ContractProvider(hub=hub) as provider:
        for _ in range(4):
            await provider.execute("contract/run")
        assert hub.recycled == ["box-1", "box-1", "box-1", "box-2"]
        assert hub.retired == ["box-1"]


async def test_exclusive_means_one_at_a_time() -> None:
    """A third request waits although two instances exist, and gets the first that is free."""
    hub = ContractHub(ContractOptions(limit=2, uses=0))
    async with ContractProvider(hub=hub) as provider:
        tasks = [asyncio.create_task(provider.execute("contract/run", {"text": str(n)})) for n in range(3)]
        for creation in await hub.creations.take(2):
            creation.finish()
        first, second = await hub.calls.take(2)
        assert provider.dispatcher.shell.admission.waiting == 1
        second.finish(b"2")
        third = await hub.calls.next()
        first.finish(b"1")
        third.finish(b"3")
        assert await asyncio.gather(*tasks) == [1, 2, 3]
        assert len(hub.creations.all) == 2


async def test_those_who_wait_are_told_why_nothing_can_be_created() -> None:
    """And when it works again, the next one is served."""
    hub = ContractHub()
    async with ContractProvider(hub=hub) as provider:
        task = asyncio.create_task(provider.execute("contract/run"))
        (await hub.creations.next()).fail(InstanceFailure(FailureKind.SERVER_ERROR, "no disk left"))
        with pytest.raises(Exception, match="no disk left"):
            await task
        with pytest.raises(Exception, match="no disk left"):
            await provider.execute("contract/run")
        hub.recover()
        again = asyncio.create_task(provider.execute("contract/run"))
        (await hub.creations.next()).finish()
        (await hub.calls.next()).finish(b"1")
        assert await again == 1


async def test_requests_that_come_while_one_is_created_get_their_own() -> None:
    """Asking for more is not lost because the hub is being asked already."""
    hub = ContractHub(ContractOptions(limit=3))
    async with ContractProvider(hub=hub) as provider:
        tasks = [asyncio.create_task(provider.execute("contract/run"))]
        first = await hub.creations.next()
        tasks.append(asyncio.create_task(provider.execute("contract/run")))
        second = await hub.creations.next()
        first.finish()
        tasks.append(asyncio.create_task(provider.execute("contract/run")))
        third = await hub.creations.next()
        second.finish()
        third.finish()
        for call in await hub.calls.take(3):
            call.finish(b"1")
        assert await asyncio.gather(*tasks) == [1, 1, 1]


async def test_an_instance_that_is_unwell_is_not_given_work() -> None:
    """A check takes it out; when it passes, it is back."""
    hub = ContractHub(ContractOptions(auto=True, uses=0, limit=1))
    async with ContractProvider(hub=hub) as provider:
        await provider.execute("contract/run")
        (instance,) = hub.instances
        hub.well = False
        assert not await provider.dispatcher.shell.health.check(instance.id)
        with pytest.raises(Exception, match="not well"):
            await provider.execute("contract/run")
        hub.well = True
        assert await provider.dispatcher.shell.health.check(instance.id)
        await provider.execute("contract/run")


async def test_what_is_no_answer_is_the_instances_failure() -> None:
    """Garbage is not passed on."""
    hub = ContractHub()
    async with ContractProvider(hub=hub) as provider:
        task = asyncio.create_task(provider.execute("contract/run"))
        (await hub.creations.next()).finish()
        (await hub.calls.next()).finish(b"<html>")
        with pytest.raises(InstanceFailure, match="no JSON") as caught:
            await task
        assert caught.value.kind is FailureKind.SERVER_ERROR


async def test_wrong_parameters_never_reach_an_instance() -> None:
    """They are refused before one is created."""
    hub = ContractHub()
    async with ContractProvider(hub=hub) as provider:
        with pytest.raises(InvalidRequest, match=r"contract/run: text: .*string") as caught:
            await provider.execute("contract/run", {"text": 1})
        assert caught.value.param == "text"
        assert not hub.creations.all


# -- stream -------------------------------------------------------------------------------------------------------------


async def test_a_stream_can_be_used_again_after_it_was_left() -> None:
    """The other end is told to stop, and what it still sent is not mistaken for the next answer."""
    hub = StreamHub()
    async with StreamProvider(hub=hub) as provider:
        for _ in range(3):
            async with provider.stream("counter/count", {"to": 1000}) as parts:
                assert await anext(parts) == 0
        assert await provider.execute("counter/count", {"to": 3}) == [0, 1, 2]
        assert hub.counters[0].cancelled == [1, 2, 3]


async def test_a_stream_that_ends_early_is_lost() -> None:
    """Not an answer that happens to be short."""
    hub = StreamHub()
    async with StreamProvider(hub=hub) as provider:
        parts = provider.stream("counter/count", {"to": 10**6})
        await anext(parts)
        (instance,) = hub.instances
        await instance.offers[0][1].aclose()  # type: ignore[union-attr]
        with pytest.raises(InstanceFailure) as caught:
            async for _ in parts:
                pass
        assert caught.value.kind is FailureKind.LOST
        assert provider.dispatcher.shell.admission.pool.in_flight == 0


# -- http ---------------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def two_servers() -> AsyncIterator[tuple[WebServer, WebServer, WebProvider]]:
    """And a provider that has both."""
    async with WebServer() as one, WebServer() as other, WebProvider(hub=WebHub(one.url, other.url)) as provider:
        yield one, other, provider


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_server_that_fails_is_replaced_by_the_other(status: int) -> None:
    """The caller does not notice."""
    async with two_servers() as (one, other, provider):
        one.status, one.retry_after_s = status, 30.0
        for _ in range(10):
            assert await provider.execute("web/get") == ["0", "1", "2"]
        assert other.asked == 10


async def test_a_server_that_is_gone_is_replaced_by_the_other() -> None:
    """Also for work that must not be done twice: it never began."""
    async with two_servers() as (one, other, provider):
        await one.stop()
        for _ in range(10):
            assert await provider.execute("web/put") == ["0", "1", "2"]
        assert other.asked == 10
        assert sorted(report.state for report in provider.dispatcher.reports()) == ["down", "ready"]


async def test_an_answer_that_breaks_off_is_not_passed_on_as_whole() -> None:
    """Before the first part another is asked; after it the caller is told."""
    async with two_servers() as (one, other, provider):
        one.breaks_off = other.breaks_off = True
        parts = provider.stream("web/get")
        with pytest.raises(InstanceFailure, match="broke off"):
            async for _ in parts:
                pass
        assert one.asked + other.asked == 1


async def test_leaving_closes_the_connection() -> None:
    """The server sees at once that nobody wants its answer any more."""
    async with WebServer() as server, WebProvider(hub=WebHub(server.url)) as provider:
        server.silent = True
        task = asyncio.create_task(provider.execute("web/get"))
        while not server.asked:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        async with asyncio.timeout(30):
            await server.left.wait()
        assert provider.dispatcher.shell.admission.pool.in_flight == 0


async def test_a_server_that_comes_back_is_used_again() -> None:
    """Its next check finds it."""
    async with WebServer() as server, WebProvider(hub=WebHub(server.url)) as provider:
        port = int(server.url.rsplit(":", 1)[1])
        await server.stop()
        with pytest.raises(InstanceFailure) as caught:
            await provider.execute("web/get")
        assert caught.value.kind is FailureKind.REFUSED
        await server.listen(port)
        (report,) = provider.dispatcher.reports()
        assert await provider.dispatcher.shell.health.check(report.instance.id)
        assert await provider.execute("web/get") == ["0", "1", "2"]


# -- what does not fit together --------------------------------------------------------------------------------------------


async def test_a_provider_finds_only_what_speaks_its_language() -> None:
    """Hubs and providers are orthogonal: what does not match is not there for it."""
    dispatcher = Dispatcher()
    await dispatcher.shell.add_hub(ScriptedHub())
    provider = ContractProvider()
    provider.bind(dispatcher)
    with pytest.raises(Exception, match="contract over call"):
        await provider.execute("contract/run")
    await dispatcher.aclose()
