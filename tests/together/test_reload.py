"""Reloading: what differs is put in force while requests run, what cannot be is said, and nothing is dropped."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gleitzeit_core.config import check_configuration, read_configuration
from gleitzeit_core.errors import ClosedError, ConfigurationError, GleitzeitError
from gleitzeit_core.manager import ResourceManager
from gleitzeit_core.reload import RESTART, differences
from gleitzeit_ollama.hub import OllamaHub
from gleitzeit_ollama.testing import OllamaServer
from gleitzeit_ollama.testing.gates import Gate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from gleitzeit_core.config import Configuration
    from gleitzeit_core.reload import Change, Changes
    from gleitzeit_ollama.options import OllamaOptions

QUESTION = {"model": "smollm2", "messages": [{"role": "user", "content": "hi"}]}


def told(changes: Changes) -> list[tuple[str, str, bool, str]]:
    """The changes without their values."""
    return [(change.path, change.what, change.applied, change.note) for change in changes]


def found(changes: Changes, path: str) -> Change:
    """The one change there."""
    (change,) = [change for change in changes if change.path == path]
    return change


# -- what differs

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=4),
    max_leaves=12,
)


@given(PLAIN)
def test_what_is_the_same_does_not_differ(value: object) -> None:
    """Whatever it is."""
    assert list(differences(value, value)) == []


@given(st.lists(st.integers(), max_size=6), st.integers(), st.data())
def test_one_entry_more_is_one_difference(items: list[int], extra: int, data: st.DataObject) -> None:
    """Wherever it was put in or taken out, the others have not changed."""
    place = data.draw(st.integers(0, len(items)))
    more = [*items[:place], extra, *items[place:]]
    ((path, _, after),) = differences(items, more)
    assert after == extra
    assert more[: int(path[0])] == items[: int(path[0])]
    ((_, before, _),) = differences(more, items)
    assert before == extra


@given(PLAIN, PLAIN)
def test_what_differs_is_named(before: object, after: object) -> None:
    """Two values that are not the same have a difference, and each that is told is one."""
    found = list(differences(before, after))
    assert bool(found) == (before != after)
    assert all(old != new for _, old, new in found)


# -- a manager that runs


@pytest.fixture
async def server() -> AsyncIterator[OllamaServer]:
    """One whose tokens pass as a test allows; at first, all."""
    async with OllamaServer(gate=Gate(is_open=True)) as server:
        yield server


@pytest.fixture
async def other() -> AsyncIterator[OllamaServer]:
    """Another."""
    async with OllamaServer() as server:
        yield server


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the configuration is."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "gleitzeit.yaml"


@pytest.fixture
def write(file: Path, server: OllamaServer, other: OllamaServer) -> Callable[[str], None]:
    """Writes the configuration; SERVER and OTHER stand for the servers."""

    def write(text: str) -> None:
        file.write_text(text.replace("SERVER", server.url).replace("OTHER", other.url))

    return write


LAN = "hubs: {lan: {type: ollama, instances: ['SERVER']}}\n"


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


# -- sections of plugins

KEY = "a-long-enough-key"


@pytest.fixture
async def manager(file: Path, write: Callable[[str], None]) -> AsyncIterator[ResourceManager]:
    """With the gateway's section."""
    write(LAN)
    async with ResourceManager.from_config(file) as manager:
        yield manager


async def test_a_section_is_reloaded_by_its_plugin(manager: ResourceManager, write: Callable[[str], None]) -> None:
    """It gets the new options, those that need a restart as they were; secrets are not shown."""
    got: list[Any] = []

    def swap(options: object) -> str:
        got.append(options)
        return "keys swapped"

    manager.on_reload("gateway", swap, fixed=["port"])
    write(LAN + f"gateway: {{port: 9000, grace_s: 3, keys: [{{name: me, key: {KEY}}}]}}\n")
    changes = await manager.reload()
    assert (found(changes, "gateway.grace_s").applied, found(changes, "gateway.grace_s").note) == (True, "keys swapped")
    assert (found(changes, "gateway.port").applied, found(changes, "gateway.port").note) == (False, RESTART)
    assert found(changes, "gateway.keys[0]").after["key"] == "***"
    assert KEY not in repr(changes)
    (options,) = got
    assert (options.port, options.grace_s) == (8484, 3.0)
    assert manager.config.sections["gateway"] == options
    # A secret that changes is a change, though nobody sees it.
    write(LAN + f"gateway: {{grace_s: 3, keys: [{{name: me, key: {KEY}-2}}]}}\n")
    (change,) = await manager.reload()
    assert (change.path, change.before, change.after, change.applied) == ("gateway.keys[0].key", "***", "***", True)
    assert len(got) == 2


async def test_a_section_nobody_reloads_needs_a_restart(manager: ResourceManager, write: Callable[[str], None]) -> None:
    """And stays as it was."""
    write(LAN + "gateway: {port: 9000}\n")
    assert told(await manager.reload()) == [("gateway.port", "changed", False, RESTART)]
    assert manager.config.sections["gateway"].model_dump()["port"] == 8484


@pytest.mark.parametrize(
    ("error", "note"), [(ValueError("no"), "failed: ValueError: no"), (GleitzeitError("not now"), "failed: not now")]
)
async def test_a_plugin_that_fails_keeps_what_it_had(
    manager: ResourceManager, write: Callable[[str], None], error: Exception, note: str
) -> None:
    """It is said, and all else is put in force."""

    def fail(options: object) -> str:
        del options
        raise error

    manager.on_reload("gateway", fail)
    write(LAN + "routes: [{methods: ['llm/*']}]\ngateway: {grace_s: 3}\n")
    changes = await manager.reload()
    assert told(changes) == [("routes[0]", "added", True, ""), ("gateway.grace_s", "changed", False, note)]
    assert manager.config.sections["gateway"].model_dump()["grace_s"] == 30.0
    assert len(manager.config.routes) == 2


# -- one at a time, and to the end


def checked(manager: ResourceManager, routes: str) -> Configuration:
    """As the manager's, with `routes`."""
    raw = read_configuration(manager.config.source, overrides={"routes": [{"methods": [routes]}]})
    return check_configuration(raw, manager.host)


async def test_one_reload_at_a_time(manager: ResourceManager) -> None:
    """The second begins where the first has ended."""
    first, second = await asyncio.gather(
        *(manager.reload(checked(manager, pattern)) for pattern in ("llm/chat", "llm/*"))
    )
    assert told(first) == [("routes[0]", "added", True, "")]
    assert [(change.path, change.before, change.after) for change in second] == [
        ("routes[0].methods[0]", "llm/chat", "llm/*")
    ]


READING = """
import threading
from pydantic import BaseModel, field_validator
from gleitzeit_core.hookspecs import SectionType, hookimpl

reading, go_on = threading.Event(), threading.Event()

class Options(BaseModel):
    word: str = ""

    @field_validator("word")
    @classmethod
    def slow(cls, word):
        if word == "first":
            reading.set()
            go_on.wait(30)
        return word

@hookimpl
def gleitzeit_register_sections():
    return [SectionType(name="slow", options=f"{__name__}:Options", summary="takes its time")]
"""


async def test_what_is_written_last_counts(file: Path, write: Callable[[str], None]) -> None:
    """However long it takes to read what was there before."""
    file.with_name("slow.py").write_text(READING)
    head = LAN + "plugins: {files: [./slow.py]}\n"
    write(head)
    async with ResourceManager.from_config(file) as manager:
        manager.on_reload("slow", lambda _: "")
        plugin: Any = next(record.module for record in manager.host.records if record.name == "slow")
        write(head + "slow: {word: first}\n")
        first = asyncio.create_task(manager.reload())
        await asyncio.to_thread(plugin.reading.wait)
        write(head + "slow: {word: second}\n")
        second = asyncio.create_task(manager.reload())
        await asyncio.wait({second}, timeout=0.1)
        plugin.go_on.set()
        await asyncio.gather(first, second)
        assert manager.config.sections["slow"].model_dump() == {"word": "second"}


class Slow:
    """A hub that takes other options when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()
        self._reconfigure = OllamaHub.reconfigure
        slow = self

        async def reconfigure(hub: OllamaHub, options: OllamaOptions) -> bool:
            slow.asked.set()
            await slow.go_on.wait()
            return await slow._reconfigure(hub, options)

        monkeypatch.setattr(OllamaHub, "reconfigure", reconfigure)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    """Ollama's hubs are."""
    return Slow(monkeypatch)


async def test_a_reload_goes_on_without_its_caller(
    manager: ResourceManager, write: Callable[[str], None], slow: Slow
) -> None:
    """Left half-way, it would leave the manager half-way."""
    write(LAN.replace("}}", ", check_interval_s: 3}}") + "routes: [{methods: ['llm/*']}]\n")
    events = manager.events()
    asked = asyncio.create_task(manager.reload())
    await slow.asked.wait()
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    slow.go_on.set()
    async for event in events:
        if event.kind == "reload":
            break
    assert len(manager.config.routes) == 2
    assert len(await manager.reload()) == 0


async def test_closed_amid_a_reload(manager: ResourceManager, write: Callable[[str], None], slow: Slow) -> None:
    """Who waits for it is told, and nothing is left behind."""
    write(LAN.replace("}}", ", check_interval_s: 3}}"))
    asked = asyncio.create_task(manager.reload())
    await slow.asked.wait()
    await manager.aclose()
    with pytest.raises(ClosedError):
        await asked
    with pytest.raises(ClosedError):
        await manager.reload()
