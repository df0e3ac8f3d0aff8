"""Instances that come and go while all is running: by hand, and with another configuration."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import ConfigurationError, InvalidRequest
from gleitzeit_llm.provider import LLMProvider
from gleitzeit_ollama.hub import OllamaHub
from gleitzeit_ollama.options import checked_options
from gleitzeit_ollama.testing import OllamaServer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    StartPool = Callable[..., Awaitable[Any]]

KEY = "sk-open-sesame"
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


# -- by hand ---------------------------------------------------------------------------------------------------------------


async def test_one_that_is_added_can_be_used_at_once(pool: StartPool) -> None:
    """With the settings given, and with what it says it has."""
    async with OllamaServer(models=["tiny"]) as first, OllamaServer(models=["big"]) as second:
        pooled = await pool(first.url)
        settings = {"url": second.url, "type": "ollama", "hub": "", "weight": 2, "tags": ["gpu"], "models": []}
        added = await pooled.dispatcher.shell.add_instance("ollama", settings)
        assert pooled.states() == {first.url: "ready", second.url: "ready"}
        assert (added.endpoint, added.weight, added.tags) == (second.url, 2, {"gpu"})
        assert pooled.models(second.url) == {"model:big"}
        await pooled.hub.search()
        assert pooled.models(second.url) == {"model:big"}


async def test_one_that_is_down_is_added_all_the_same(pool: StartPool) -> None:
    """It is shown as down, and used when it comes."""
    async with OllamaServer() as first, OllamaServer(models=["big"]) as second:
        await second.stop()
        pooled = await pool(first.url, check_interval_s=0.05)
        await pooled.dispatcher.shell.add_instance("ollama", {"url": second.url})
        assert pooled.states()[second.url] == "down"
        await second.start()
        await pooled.until(lambda: pooled.states()[second.url] == "ready")


async def test_one_that_is_there_takes_other_settings(pool: StartPool) -> None:
    """In place: what is known of it and what it works on stay."""
    async with OllamaServer(models=["tiny"]) as server:
        pooled = await pool(server.url)
        record = pooled.dispatcher.shell.admission.pool.records[pooled.instance(server.url).id]
        added = await pooled.dispatcher.shell.add_instance("ollama", {"url": server.url, "weight": 3, "name": "big"})
        assert pooled.dispatcher.shell.admission.pool.records[added.id] is record
        assert (added.weight, added.details["name"]) == (3, "big")
        assert pooled.models(server.url) == {"model:tiny"}
        assert pooled.hub.find("big").id == added.id


async def test_one_that_must_not_be_probed_any_more_gets_no_check(pool: StartPool) -> None:
    """From now on nothing but users' requests is sent to it."""
    async with OllamaServer(models=["tiny"]) as server:
        pooled = await pool(server.url, check_interval_s=0.01)
        await pooled.dispatcher.shell.add_instance("ollama", {"url": server.url, "models": ["x"], "probe": False})
        assert pooled.states() == {server.url: "ready"}
        assert pooled.models(server.url) == {"model:x"}
        assert await pooled.dispatcher.shell.health.check(pooled.instance(server.url).id) is False


async def test_one_server_is_not_added_under_two_names(pool: StartPool) -> None:
    """It would get twice its share."""
    async with OllamaServer() as server:
        pooled = await pool(server.url)
        alias = server.url.replace("127.0.0.1", "localhost")
        with pytest.raises(InvalidRequest, match=f"there already, as {server.url}"):
            await pooled.dispatcher.shell.add_instance("ollama", {"url": alias})
        assert list(pooled.states()) == [server.url]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "url: is missing"),
        ({"url": "ftp://gpu1"}, "url: must begin with http:// or https://"),
        ({"url": "gpu1", "wieght": 2}, "wieght: unknown key (did you mean 'weight'?)"),
        ({"url": "gpu1", "weight": 0}, "weight: must be above 0"),
        ({"url": "gpu1", "api_key": f"{KEY} x"}, "api_key: the key has characters in it that no key has"),
        ({"url": "gpu1", "headers": {"X-Key": f"{KEY}\n"}}, "headers: the value of 'X-Key' has a line break"),
        ({"url": "gpu1", "weight": 0, "max_concurrent": 0}, "; max_concurrent: must be at least 1"),
    ],
)
async def test_wrong_settings_are_refused(settings: dict[str, Any], message: str, pool: StartPool) -> None:
    """With all that is wrong, without a secret, and nothing has changed."""
    pooled = await pool(discover=True, discover_ports=[1])
    with pytest.raises(InvalidRequest) as caught:
        await pooled.dispatcher.shell.add_instance("ollama", settings)
    assert message in caught.value.message
    assert KEY not in caught.value.message
    assert pooled.states() == {}


async def test_certificates_that_are_none_are_told_of(pool: StartPool, tmp_path: Path) -> None:
    """By the option that names them."""
    wrong = tmp_path / "ca.pem"
    wrong.write_text("no certificate")
    pooled = await pool(discover=True, discover_ports=[1])
    with pytest.raises(InvalidRequest, match="cannot be used: it holds no certificates") as caught:
        await pooled.dispatcher.shell.add_instance("ollama", {"url": "https://gpu1", "tls": {"ca": str(wrong)}})
    assert caught.value.param == "tls.ca"


async def test_one_that_is_removed_stays_away_until_it_is_added(pool: StartPool) -> None:
    """Neither the configured list nor a search on this machine brings it back."""
    async with OllamaServer() as server:
        pooled = await pool(instances=[server.url], discover=True, discover_ports=[server.port])
        await pooled.dispatcher.shell.remove_instance(pooled.instance(server.url).id)
        await pooled.hub.search()
        assert pooled.states() == {}
        await pooled.dispatcher.shell.add_instance("ollama", {"url": server.url})
        assert pooled.states() == {server.url: "ready"}


# -- another configuration ---------------------------------------------------------------------------------------------------


async def test_the_list_of_instances_changes_in_place(pool: StartPool) -> None:
    """New ones are ready when it returns, gone ones are gone, and those that stay are left as they are."""
    async with OllamaServer() as stays, OllamaServer() as goes, OllamaServer(models=["new"]) as comes:
        pooled = await pool(stays.url, goes.url)
        records = pooled.dispatcher.shell.admission.pool.records
        before = records[pooled.instance(stays.url).id]
        asked = len(stays.requests)
        assert await pooled.hub.reconfigure(checked_options({"instances": [stays.url, comes.url]}))
        assert pooled.states() == {stays.url: "ready", comes.url: "ready"}
        assert pooled.models(comes.url) == {"model:new"}
        assert records[before.instance.id] is before
        assert len(stays.requests) == asked
        await pooled.hub.search()
        assert set(pooled.states()) == {stays.url, comes.url}


async def test_changed_options_count_at_once(pool: StartPool) -> None:
    """Also those that are sent: the server that refused us is asked again, and takes the new key."""
    async with OllamaServer(models=["tiny"]) as server:
        pooled = await pool({"url": server.url, "weight": 1})
        changed = {"url": server.url, "weight": 2, "api_key": KEY, "tags": ["gpu"]}
        assert await pooled.hub.reconfigure(checked_options({"instances": [changed]}))
        instance = pooled.instance(server.url)
        assert (instance.weight, instance.tags) == (2, {"gpu"})
        assert pooled.models(server.url) == {"model:tiny"}
        assert server.requests[-1].headers["Authorization"] == f"Bearer {KEY}"


async def test_work_on_an_instance_that_is_no_longer_configured_goes_on() -> None:
    """Nothing is dropped: the stream comes to its end."""
    async with OllamaServer(models=["tiny"]) as server, OllamaServer(models=["tiny"]) as other:
        hub = OllamaHub(checked_options({"instances": [server.url]}))
        async with LLMProvider(hub=hub) as llm:
            stream = llm.stream("llm/chat", CHAT)
            parts = [await anext(stream)]
            assert await hub.reconfigure(checked_options({"instances": [other.url]}))
            assert [instance.endpoint for instance in hub.instances] == [other.url]
            parts += [part async for part in stream]
            assert parts[-1]["done"]
            assert await llm.execute("llm/chat", CHAT)
            assert [record.path for record in other.requests if record.method == "POST"] == ["/api/chat"]


async def test_what_needs_a_restart_changes_nothing(pool: StartPool) -> None:
    """Not even what would not need one."""
    async with OllamaServer() as server, OllamaServer() as other:
        pooled = await pool(server.url)
        options = checked_options({"instances": [other.url], "connect_timeout_s": 1})
        assert not await pooled.hub.reconfigure(options)
        assert not await pooled.hub.reconfigure(checked_options({"instances": [other.url], "managed": {}}))
        assert pooled.states() == {server.url: "ready"}
        assert pooled.hub.options.connect_timeout_s == 3


async def test_certificates_that_cannot_be_read_change_nothing(pool: StartPool, tmp_path: Path) -> None:
    """The configuration is broken: it is said, and all goes on as before."""
    wrong = tmp_path / "ca.pem"
    wrong.write_text("no certificate")
    async with OllamaServer() as server:
        pooled = await pool(server.url)
        options = checked_options({"instances": [{"url": "https://a", "tls": {"ca": str(wrong)}}]})
        with pytest.raises(ConfigurationError, match=r"hubs\.ollama\.instances\[0\]\.tls\.ca: cannot be used"):
            await pooled.hub.reconfigure(options)
        assert pooled.states() == {server.url: "ready"}
        assert pooled.hub.options.instances[0].url == server.url


async def test_discovery_can_be_switched_on_and_off(pool: StartPool) -> None:
    """What was found before stays."""
    async with OllamaServer() as first, OllamaServer() as second, OllamaServer() as third:
        pooled = await pool(first.url)
        on = checked_options({"instances": [first.url], "discover": True, "discover_ports": [second.port]})
        assert await pooled.hub.reconfigure(on)
        await pooled.hub.search()
        assert set(pooled.states()) == {first.url, second.url}
        assert await pooled.hub.reconfigure(checked_options({"instances": [first.url], "discover_ports": [third.port]}))
        await pooled.hub.search()
        assert set(pooled.states()) == {first.url, second.url}


async def test_what_was_removed_by_hand_comes_back_only_when_its_options_change(pool: StartPool) -> None:
    """Reading the same list again brings nothing back; writing something new for it does."""
    async with OllamaServer() as server, OllamaServer() as other:
        pooled = await pool(server.url, other.url)
        await pooled.dispatcher.shell.remove_instance(pooled.instance(server.url).id)
        both = [server.url, other.url]
        assert await pooled.hub.reconfigure(checked_options({"instances": both, "pull_stall_timeout_s": 7}))
        assert set(pooled.states()) == {other.url}
        changed = [{"url": server.url, "weight": 2}, other.url]
        assert await pooled.hub.reconfigure(checked_options({"instances": changed}))
        assert set(pooled.states()) == {server.url, other.url}


async def test_one_that_was_added_by_hand_stays_with_another_configuration(pool: StartPool) -> None:
    """The list in the configuration says nothing about it; when it is named there, its options count."""
    async with OllamaServer() as server, OllamaServer() as added:
        pooled = await pool(server.url)
        await pooled.dispatcher.shell.add_instance("ollama", {"url": added.url, "weight": 5})
        assert await pooled.hub.reconfigure(checked_options({"instances": [{"url": server.url, "weight": 2}]}))
        assert pooled.instance(added.url).weight == 5
        assert await pooled.hub.reconfigure(checked_options({"instances": [server.url, {"url": added.url}]}))
        assert pooled.instance(added.url).weight == 1


async def test_nothing_is_left_of_what_came_and_went(pool: StartPool) -> None:
    """After many changes one instance is watched, as before."""
    async with OllamaServer() as server, OllamaServer() as other:
        pooled = await pool(server.url)
        for _ in range(5):
            for url in (other.url, server.url):
                assert await pooled.hub.reconfigure(checked_options({"instances": [url]}))
        await asyncio.sleep(0)
        watching = [task for task in asyncio.all_tasks() if task.get_name().startswith("health of")]
        assert len(watching) == 1
