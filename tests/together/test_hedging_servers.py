"""Second tries and leases with live servers: whoever loses has its connection closed, which is how a server learns of it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

import pytest

from gleitzeit_core.dispatch import DEFAULT_ROUTE, Dispatcher
from gleitzeit_core.errors import LeaseExpired
from gleitzeit_core.requests import Outcome, Result
from gleitzeit_core.resources import Requirements
from gleitzeit_core.routing import HedgePolicy, Route
from gleitzeit_llm.provider import LLMProvider
from gleitzeit_ollama.hub import OllamaHub
from gleitzeit_ollama.options import checked_options
from gleitzeit_ollama.testing import Hang, HangBeforeHeaders, OllamaServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from gleitzeit_ollama.testing import Fault

QUESTION: Final = {"model": "smollm2", "messages": [{"role": "user", "content": "one two three four"}]}
ALWAYS: Final = HedgePolicy(percentile=50.0, budget=1.0, min_samples=1)


@contextlib.asynccontextmanager
async def two_servers() -> AsyncIterator[tuple[OllamaServer, Dispatcher, LLMProvider]]:
    """Two servers that answer at once, as far as is known; the first of them may be told otherwise."""
    async with OllamaServer() as slow, OllamaServer() as quick:
        route = Route(name="llm", methods=("llm/*", "lease"), strategy=DEFAULT_ROUTE.strategy, hedge=ALWAYS)
        dispatcher, provider = Dispatcher([route]), LLMProvider()
        provider.bind(dispatcher)
        known = Outcome(result=Result.OK, first_output_s=0.01, total_s=0.02)
        dispatcher.metrics.record("llm/chat", "somebody", known, route="llm", model="smollm2")
        await provider.open()
        try:
            hub = OllamaHub(checked_options({"instances": [slow.url, quick.url], "discover": False}))
            await dispatcher.shell.add_hub(hub)
            for server in (slow, quick):
                # Both have the model ready.
                lease = dispatcher.lease(Requirements(accepts=(), instances=frozenset({_id(dispatcher, server)})))
                async with lease as held:
                    await held.execute(provider, "llm/chat", QUESTION)
                await dispatcher.shell.health.check(held.instance.id)
            yield slow, dispatcher, provider
        finally:
            await dispatcher.aclose()
            await provider.close()


def _id(dispatcher: Dispatcher, server: OllamaServer) -> str:
    return next(r.instance.id for r in dispatcher.reports() if r.instance.endpoint == server.url)


async def _whole(provider: LLMProvider) -> dict[str, Any]:
    answer: dict[str, Any] = await provider.execute("llm/chat", QUESTION)
    return answer


async def _parts(provider: LLMProvider) -> dict[str, Any]:
    parts = [part async for part in provider.stream("llm/chat", QUESTION)]
    assert len(parts) > 1
    last: dict[str, Any] = parts[-1]
    return last


@pytest.mark.parametrize("ask", [_whole, _parts])
@pytest.mark.parametrize("fault", [Hang, HangBeforeHeaders])
async def test_a_server_that_hangs_costs_nothing_but_the_wait_for_the_other(
    fault: Callable[[], Fault], ask: Callable[[LLMProvider], Any]
) -> None:
    """The other answers, be it first or second; the connection to the one that hangs is closed, nothing is in flight."""
    async with two_servers() as (slow, dispatcher, provider), asyncio.timeout(30):
        slow.script.next(fault())
        while slow.script:
            answer = await ask(provider)
            assert answer["done"] is True
        assert dispatcher.hedges.started >= 1
        await slow.wait_for(lambda server: server.disconnects == 1 and not server.held)
        while dispatcher.shell.admission.pool.in_flight:
            await asyncio.sleep(0)
        assert dispatcher.active == 0


async def test_a_lease_that_ends_closes_the_connection() -> None:
    """Whoever holds it."""
    async with two_servers() as (slow, dispatcher, provider), asyncio.timeout(30):
        slow.script.next(Hang())
        needs = Requirements(accepts=(), instances=frozenset({_id(dispatcher, slow)}))
        async with dispatcher.lease(needs) as lease:
            work = asyncio.create_task(lease.execute(provider, "llm/chat", QUESTION))
            await slow.wait_for(lambda server: server.held)
        with pytest.raises(LeaseExpired, match="has ended: it was given back"):
            await work
        await slow.wait_for(lambda server: server.disconnects == 1)
        assert dispatcher.shell.admission.pool.in_flight == 0
