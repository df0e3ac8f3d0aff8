"""Reloading: what differs is put in force while requests run, what cannot be is said, and nothing is dropped."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gleitzeit_core.config import check_configuration, read_configuration
from gleitzeit_core.errors import ConfigurationError
from gleitzeit_core.manager import ResourceManager
from gleitzeit_core.reload import RESTART
from gleitzeit_ollama.testing.gates import Gate

from .changes import LAN, QUESTION, found, told

if TYPE_CHECKING:
    from collections.abc import Callable

    from gleitzeit_ollama.testing import OllamaServer


async def test_nothing_has_changed(file: Path, write: Callable[[str], None]) -> None:
    """The same file is no news."""
    write(LAN)
    async with ResourceManager.from_config(file) as manager:
        changes = await manager.reload()
        assert len(changes) == 0
        assert list(changes) == []


async def test_routes_change_under_those_who_wait(
    file: Path, write: Callable[[str], None], server: OllamaServer
) -> None:
    """What runs goes on, who waits keeps its place, and whoever comes next is served by the new route."""
    gate = server.gate
    assert isinstance(gate, Gate)
    one = LAN.replace("['SERVER']", "[{url: 'SERVER', max_concurrent: 1}]")
    write(one + "routes: [{methods: ['llm/*'], max_queue: 1}]\n")
    async with ResourceManager.from_config(file) as manager:
        gate.close()
        asked = [asyncio.create_task(manager.execute("llm/chat", QUESTION)) for _ in range(2)]
        while not manager.queues():
            await asyncio.sleep(0)
        (queue,) = manager.status()["queues"]
        assert (queue["waiting"], queue["limit"]) == (1, 1)
        write(one + "routes: [{methods: ['llm/*'], strategy: round_robin, max_queue: 2, hedge: true}]\n")
        changes = await manager.reload()
        assert told(changes) == [
            ("routes[0].strategy.name", "changed", True, ""),
            ("routes[0].max_queue", "changed", True, ""),
            ("routes[0].hedge", "changed", True, ""),
        ]
        assert manager.queues()[0]["limit"] == 2
        asked.append(asyncio.create_task(manager.execute("llm/chat", QUESTION)))
        while manager.queues()[0]["waiting"] < 2:
            await asyncio.sleep(0)
        gate.open()
        assert all([(await task)["done"] for task in asked])
        assert manager.status()["routes"][0]["strategy"] == "round_robin"
        assert len(await manager.reload()) == 0


async def test_hubs_come_and_go(
    file: Path, write: Callable[[str], None], server: OllamaServer, other: OllamaServer
) -> None:
    """The new one serves at once; the old one ends when its work has ended."""
    gate = server.gate
    assert isinstance(gate, Gate)
    write(LAN)
    async with ResourceManager.from_config(file) as manager:
        gate.close()
        events = manager.events()
        asked = asyncio.create_task(manager.execute("llm/chat", QUESTION))
        while not server.in_flight:
            await asyncio.sleep(0)
        write("hubs: {den: {type: ollama, instances: ['OTHER']}}\nroutes: [{methods: ['llm/*'], hubs: [den]}]\n")
        changes = await manager.reload()
        assert (found(changes, "hubs.den").applied, found(changes, "hubs.lan").applied) == (True, True)
        assert found(changes, "hubs.lan").note == "once its work has ended"
        assert list(manager.config.hubs) == ["den"]
        await manager.execute("llm/chat", QUESTION)
        assert [r.method for r in other.requests if r.path == "/api/chat"] == ["POST"]
        assert not asked.done()
        gate.open()
        assert (await asked)["done"] is True
        async for event in events:
            if event.kind == "hub" and event.data["change"] == "removed":
                break
        assert [hub["name"] for hub in manager.status()["hubs"]] == ["den"]


async def test_a_hub_takes_other_options(file: Path, write: Callable[[str], None], other: OllamaServer) -> None:
    """Those that it can change in place; its name and what it knows stay."""
    write(LAN)
    async with ResourceManager.from_config(file) as manager:
        hub = manager.dispatcher.shell.hubs["lan"]
        write(LAN.replace("'SERVER'", "'SERVER', 'OTHER'").replace("}}", ", check_interval_s: 3}}"))
        changes = await manager.reload()
        assert told(changes) == [
            ("hubs.lan.check_interval_s", "changed", True, ""),
            ("hubs.lan.instances[1]", "added", True, ""),
        ]
        assert found(changes, "hubs.lan.check_interval_s").before == 10.0
        assert found(changes, "hubs.lan.instances[1]").after["url"] == other.url
        assert manager.dispatcher.shell.hubs["lan"] is hub
        assert hub.options.check_interval_s == 3.0
        assert len(manager.instances()) == 2


async def test_a_hub_has_another_name(file: Path, write: Callable[[str], None]) -> None:
    """Its instances are with the new one as soon as the old one has ended, not only when that looks again."""
    write(LAN)
    async with asyncio.timeout(20), ResourceManager.from_config(file) as manager:
        write(LAN.replace("lan:", "den:"))
        events = manager.events()
        assert told(await manager.reload()) == [
            ("hubs.lan", "removed", True, "once its work has ended"),
            ("hubs.den", "added", True, ""),
        ]
        async for event in events:
            if event.kind == "instance" and (event.data["hub"], event.data["state"]) == ("den", "ready"):
                break
        assert await manager.execute("llm/chat", QUESTION)


async def test_what_needs_a_restart_is_said_again(file: Path, write: Callable[[str], None]) -> None:
    """Another type under the same name, options of providers, plugins: the manager goes on as it was and says so."""
    write(LAN)
    async with ResourceManager.from_config(file) as manager:
        write(
            "hubs: {lan: {type: openai, instances: ['SERVER']}}\n"
            "providers: {llm: {connect_timeout_s: 3}}\nplugins: {disabled: [nope]}\n"
        )
        for _ in range(2):
            changes = await manager.reload()
            assert {(change.applied, change.note) for change in changes} == {(False, RESTART)}
            assert found(changes, "hubs.lan.type").after == "openai"
            assert found(changes, "providers.llm.connect_timeout_s").after == 3.0
            assert found(changes, "plugins.disabled[0]").after == "nope"
        assert manager.config.hubs["lan"].type.name == "ollama"
        assert (await manager.execute("llm/chat", QUESTION))["done"] is True


@pytest.mark.parametrize("before_and_after", [("", LAN), (LAN, "")])
async def test_found_hubs_and_configured_ones_do_not_mix(
    file: Path, write: Callable[[str], None], before_and_after: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where hubs were searched for, configured ones need a restart; and the reverse."""
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    before, after = before_and_after
    write(before)
    host = ResourceManager.from_config(file).host
    monkeypatch.setattr(host, "hubs", {"ollama": host.hubs["ollama"]})
    async with ResourceManager(check_configuration(read_configuration(file), host), host) as manager:
        hubs = list(manager.dispatcher.shell.hubs)
        write(after)
        assert {(change.applied, change.note) for change in await manager.reload()} == {(False, RESTART)}
        assert list(manager.dispatcher.shell.hubs) == hubs
        assert len(await manager.reload()) == 1


async def test_a_broken_configuration_changes_nothing(file: Path, write: Callable[[str], None]) -> None:
    """All that is wrong is told, and the manager goes on."""
    write(LAN)
    async with ResourceManager.from_config(file) as manager:
        before = manager.config
        write(LAN + "routes: [{methods: ['llm/*'], hubs: [nope], max_queue: -1}]\n")
        with pytest.raises(ConfigurationError) as caught:
            await manager.reload()
        assert len(caught.value.problems) == 2
        os.unlink(file)  # noqa: PTH108 - within a running loop
        with pytest.raises(ConfigurationError, match="no such file"):
            await manager.reload()
        assert manager.config is before
        assert (await manager.execute("llm/chat", QUESTION))["done"] is True


async def test_a_hub_that_cannot_start_leaves_the_routes_alone(file: Path, write: Callable[[str], None]) -> None:
    """What needs it is not put in force either, and the old hub stays: requests go on."""
    write(LAN)
    async with ResourceManager.from_config(file) as manager:
        write(
            "hubs: {here: {type: llamacpp, models: [{path: ./gone.gguf}]}}\n"
            "routes: [{methods: ['llm/*'], hubs: [here]}]\n"
        )
        changes = await manager.reload()
        assert not any(change.applied for change in changes)
        assert "gone.gguf" in found(changes, "hubs.here").note
        assert found(changes, "routes[0]").note == "there is no hub here"
        assert found(changes, "hubs.lan").note == "kept, as not all that is new is in force"
        assert list(manager.config.hubs) == ["lan"]
        assert (await manager.execute("llm/chat", QUESTION))["done"] is True


async def test_a_hub_that_was_removed_by_hand_is_not_changed(file: Path, write: Callable[[str], None]) -> None:
    """It is not there to be changed; removing it from the configuration is fine."""
    write(LAN)
    async with ResourceManager.from_config(file) as manager:
        await manager.remove_hub("lan")
        write(LAN.replace("}}", ", check_interval_s: 3}}"))
        assert told(await manager.reload()) == [("hubs.lan.check_interval_s", "changed", False, "the hub was removed")]
        write("hubs: {den: {type: ollama, instances: ['OTHER']}}\n")
        assert [change.applied for change in await manager.reload()] == [True, True]
        assert list(manager.dispatcher.shell.hubs) == ["den"]


async def test_a_hub_that_has_not_ended_yet_does_not_come_back(
    file: Path, write: Callable[[str], None], server: OllamaServer
) -> None:
    """Its name is taken until its last work has ended; the next reload brings it."""
    gate = server.gate
    assert isinstance(gate, Gate)
    both = "hubs: {lan: {type: ollama, instances: ['SERVER']}, den: {type: ollama, instances: ['OTHER']}}\n"
    write(both)
    async with ResourceManager.from_config(file) as manager:
        gate.close()
        events = manager.events()
        (lan,) = manager.dispatcher.shell.hubs["lan"].instances
        asked = asyncio.create_task(manager.execute("llm/chat", QUESTION, instances=[lan.id]))
        while not server.in_flight:
            await asyncio.sleep(0)
        write("hubs: {den: {type: ollama, instances: ['OTHER']}}\n")
        await manager.reload()
        write(both)
        assert told(await manager.reload()) == [("hubs.lan", "added", False, "there is still a hub of that name")]
        gate.open()
        await asked
        async for event in events:
            if event.kind == "hub":
                break
        assert told(await manager.reload()) == [("hubs.lan", "added", True, "")]
        assert (await manager.execute("llm/chat", QUESTION, instances=[lan.id]))["done"] is True


async def test_nothing_is_dropped_while_hubs_and_routes_come_and_go(
    file: Path, write: Callable[[str], None], server: OllamaServer, other: OllamaServer
) -> None:
    """With requests at all times, through twelve reloads; nothing is left behind."""
    before, ended = asyncio.all_tasks(), asyncio.Event()
    hubs = [
        f"hubs: {{{name}: {{type: ollama, instances: ['{url}']}}}}\n"
        for name, url in (("lan", "SERVER"), ("den", "OTHER"))
    ]
    routes = [
        f"routes: [{{methods: ['llm/*'], strategy: {name}, max_queue: 64}}]\n" for name in ("random", "least_loaded")
    ]
    write(hubs[0] + routes[0])
    async with ResourceManager.from_config(file) as manager:

        async def ask() -> int:
            count = 0
            while not ended.is_set():
                assert (await manager.execute("llm/chat", QUESTION))["done"]
                count += 1
            return count

        asking = [asyncio.create_task(ask()) for _ in range(12)]
        for number in range(12):
            write(hubs[number // 2 % 2] + routes[number % 2])
            await manager.reload()
        ended.set()
        assert min([await task for task in asking]) > 0
        assert manager.status()["requests"]["active"] == 0
        assert sum(report.in_flight for report in manager.instances()) == 0
    assert asyncio.all_tasks() == before
    assert {bool(each.requests) for each in (server, other)} == {True}


async def test_a_dry_run_changes_nothing(file: Path, write: Callable[[str], None]) -> None:
    """It says what would, and what needs a restart."""
    write(LAN)
    async with ResourceManager.from_config(file) as manager:
        events = manager.events()
        write(LAN + "routes: [{methods: ['llm/*']}]\nproviders: {llm: {connect_timeout_s: 3}}\n")
        assert told(await manager.reload(dry_run=True)) == [
            ("providers.llm.connect_timeout_s", "changed", False, RESTART),
            ("routes[0]", "added", False, ""),
        ]
        assert len(manager.config.routes) == 1
    assert "reload" not in {event.kind async for event in events}


async def test_a_reload_is_an_event(file: Path, write: Callable[[str], None]) -> None:
    """With the changes as plain data."""
    write(LAN)
    async with ResourceManager.from_config(file) as manager:
        events = manager.events()
        write(LAN + "routes: [{methods: ['llm/*'], timeout_s: 5}, {methods: ['*'], max_queue: 3}]\n")
        changes = await manager.reload()
    (event,) = [event async for event in events if event.kind == "reload"]
    assert event.data == changes.as_dict()
    assert [change["path"] for change in event.data["changes"]] == [change.path for change in changes]


async def test_flags_go_before_the_file_again(file: Path, write: Callable[[str], None]) -> None:
    """What was given at the start stays given."""
    write(LAN)
    overrides = {"routes": [{"methods": ["*"], "strategy": "random"}]}
    async with ResourceManager.from_config(file, overrides=overrides) as manager:
        write(LAN + "routes: [{methods: ['*'], strategy: round_robin}]\n")
        assert len(await manager.reload()) == 0


async def test_a_file_that_is_there_by_now_is_found(
    file: Path, write: Callable[[str], None], server: OllamaServer
) -> None:
    """A manager that began without one looks at the usual places again."""
    hubs = {"lan": {"type": "ollama", "instances": [server.url]}}
    async with ResourceManager.from_config(overrides={"hubs": hubs}) as manager:
        assert manager.config.source is None
        write("routes: [{methods: ['llm/*'], max_queue: 3}]\n")
        assert told(await manager.reload()) == [("routes[0]", "added", True, "")]
        assert manager.config.source == Path(file.name)
