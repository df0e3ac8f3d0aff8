"""Servers that a hub starts: how they end, wanted and not, how many there are, and what they are given."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.cli import main
from gleitzeit_core.dispatch import Dispatcher
from gleitzeit_core.errors import ConfigurationError, InvalidRequest, Unavailable
from gleitzeit_core.manager import ResourceManager
from gleitzeit_core.resources import Ownership, Requirements
from gleitzeit_core.testing.conformance import SupplyConformance
from gleitzeit_llm.provider import LLMProvider
from gleitzeit_ollama.claims import Claim
from gleitzeit_ollama.hub import OllamaHub
from gleitzeit_ollama.options import checked_options
from gleitzeit_ollama.testing import OllamaServer

from .servers import CHAT, gone, pid, read, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    StartPool = Callable[..., Awaitable[Any]]


class TestManaged(SupplyConformance):
    """The hub passes what every hub that creates must."""

    limit = 2
    requirements = Requirements(accepts=(), capabilities=frozenset({"model:tiny"}))

    @pytest.fixture(autouse=True)
    def _options(self, managed: Callable[..., dict[str, Any]]) -> None:
        self.options = managed(max_total=2, idle_ttl_s=0.5)

    async def make_hub(self) -> OllamaHub:
        """Between one and two, for a short time."""
        return OllamaHub(checked_options(self.options))


async def test_a_server_is_started_and_stopped(
    pool: StartPool, managed: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """It is ready when the hub is, belongs to us, logs to a file of its own, and has ended when the hub is closed."""
    pooled = await pool(**managed(weight=2, tags=["here"], max_concurrent=3))
    (instance,) = pooled.hub.instances
    assert pooled.states() == {instance.endpoint: "ready"}
    assert instance.ownership is Ownership.MANAGED
    assert (instance.weight, instance.tags, instance.max_concurrent) == (2, {"here"}, 3)
    assert pooled.models(instance.endpoint) == {"model:tiny"}
    assert f"{instance.endpoint}\n" in read(instance.details["log"])
    (note,) = (tmp_path / "state").glob("*.json")
    assert json.loads(note.read_text())["pid"] == pid(instance)
    assert note.stat().st_mode & 0o077 == 0
    ended = gone(pid(instance))
    assert not ended()
    await pooled.dispatcher.aclose()
    assert ended()
    assert not note.exists()


# -- ends, wanted and not ------------------------------------------------------------------------------------------------


async def test_a_killed_server_is_replaced_and_no_request_is_lost(managed: Callable[..., dict[str, Any]]) -> None:
    """Another is started at once; what comes meanwhile waits for it."""
    hub = OllamaHub(checked_options(managed()))
    async with LLMProvider(hub=hub) as llm:
        (before,) = hub.instances
        os.kill(pid(before), signal.SIGKILL)
        await until(lambda: before.id not in [instance.id for instance in hub.instances])
        answer = await llm.execute("llm/chat", CHAT)
        assert answer["message"]["content"] == "You said: hi"
        (after,) = hub.instances
        assert pid(after) != pid(before)


async def test_all_it_has_started_ends_with_it(managed: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """Also what does not listen to SIGTERM, as the runners of models may not."""
    file = tmp_path / "child"
    script = f'(trap "" TERM; exec sleep 1000) & echo $! > {file}; exec "$@"'
    options = managed(stop_timeout_s=5)
    options["managed"]["command"] = ["sh", "-c", script, "sh", *options["managed"]["command"]]
    dispatcher = Dispatcher()
    await dispatcher.shell.add_hub(OllamaHub(checked_options(options)))
    child = gone(int(file.read_text()))
    assert not child()
    await dispatcher.aclose()
    await until(child)


async def test_a_server_that_does_not_end_is_killed(pool: StartPool, managed: Callable[..., dict[str, Any]]) -> None:
    """After its time: a process that is stopped takes no SIGTERM."""
    pooled = await pool(**managed(stop_timeout_s=0.05))
    (instance,) = pooled.hub.instances
    ended = gone(pid(instance))
    os.kill(pid(instance), signal.SIGSTOP)
    await pooled.dispatcher.aclose()
    assert ended()


async def test_a_server_that_ends_at_once_is_told_of(managed: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """Callers hear why, with the last line of its log; it is tried again later, not again and again."""
    tries = tmp_path / "tries"
    script = f"echo x >> {tries}; echo no GPU here >&2; exit 7"
    hub = OllamaHub(checked_options(managed(command=["sh", "-c", script], models=["tiny"])))
    async with LLMProvider(hub=hub) as llm:
        assert hub.instances == ()
        with pytest.raises(Unavailable, match=r"process \d+ ended with status 7: no GPU here"):
            await llm.execute("llm/chat", CHAT)
        assert "no GPU here" in hub.problem
    assert tries.read_text().count("x") == 1
    assert list((tmp_path / "state").glob("*.json")) == []


async def test_a_command_that_is_not_there_is_a_wrong_configuration() -> None:
    """It is said at once, where it stands."""
    dispatcher = Dispatcher()
    hub = OllamaHub(checked_options({"managed": {"command": ["no-such-ollama", "serve"]}}), name="mine")
    with pytest.raises(ConfigurationError, match=r"hubs\.mine\.managed\.command: there is no command 'no-such-ollama'"):
        await dispatcher.shell.add_hub(hub)
    await dispatcher.aclose()


async def test_a_directory_that_cannot_be_made_is_a_wrong_configuration(
    managed: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """A file stands where the logs are to go."""
    (tmp_path / "file").write_text("")
    dispatcher = Dispatcher()
    with pytest.raises(ConfigurationError, match=r"hubs\.ollama\.managed\.log_dir: cannot be used"):
        await dispatcher.shell.add_hub(OllamaHub(checked_options(managed(log_dir=str(tmp_path / "file" / "logs")))))
    await dispatcher.aclose()


async def test_a_directory_that_takes_no_files_is_a_wrong_configuration(managed: Callable[..., dict[str, Any]]) -> None:
    """It is there, but nothing can be made in it: said before a server is started, not at each one."""
    dispatcher = Dispatcher()
    with pytest.raises(ConfigurationError, match=r"hubs\.ollama\.managed\.log_dir: cannot be used"):
        await dispatcher.shell.add_hub(OllamaHub(checked_options(managed(log_dir="/proc/self"))))
    await dispatcher.aclose()


async def test_a_start_that_is_cancelled_leaves_nothing(managed: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """While the server starts: it is ended, and its note is gone."""
    file = tmp_path / "pid"
    hub = OllamaHub(checked_options(managed(command=["sh", "-c", f"echo $$ > {file}; exec sleep 1000"])))
    dispatcher = Dispatcher()
    starting = asyncio.create_task(dispatcher.shell.add_hub(hub))
    await until(lambda: file.exists() and file.read_text().strip())
    ended = gone(int(file.read_text()))
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert ended()
    assert list((tmp_path / "state").glob("*.json")) == []
    await dispatcher.aclose()


async def test_a_server_that_never_answers_is_given_up(managed: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """After the time for a creation, and it is not left to start on."""
    file = tmp_path / "pid"
    command = ["sh", "-c", f"echo $$ > {file}; exec sleep 1000"]
    dispatcher = Dispatcher()
    hub = OllamaHub(checked_options(managed(command=command, create_timeout_s=0.5)))
    await dispatcher.shell.add_hub(hub)
    assert hub.problem == "not within 0.5 s"
    assert gone(int(file.read_text()))()
    await dispatcher.aclose()


# -- how many, and with what ----------------------------------------------------------------------------------------------


async def test_servers_come_by_demand_and_go_without_it(managed: Callable[..., dict[str, Any]]) -> None:
    """As many as requests wait for, up to the limit; those that have had no work for a while go, down to the least."""
    # With the first part the model is loaded: otherwise the second request might wait for that beside a free server.
    stalled = """--fault={"kind": "stall_after", "n_parts": 1}"""
    options = managed(stalled, max_total=2, max_concurrent=1, idle_ttl_s=0.5)
    hub = OllamaHub(checked_options(options))
    async with LLMProvider(hub=hub) as llm:

        async def ask() -> None:
            async for _ in llm.stream("llm/chat", CHAT):
                pass

        asked = [asyncio.create_task(ask()) for _ in range(3)]
        await until(lambda: sum(report.in_flight for report in llm.dispatcher.reports()) == 2)
        assert len(hub.instances) == 2
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        await until(lambda: len(hub.instances) == 1)
        await until(lambda: len(hub._running_here) == 1)


async def test_with_models_named_none_need_run(managed: Callable[..., dict[str, Any]]) -> None:
    """With no least number, the first request for such a model starts one; others are told that nobody has theirs."""
    hub = OllamaHub(checked_options(managed(min_total=0, models=["tiny"])))
    async with LLMProvider(hub=hub) as llm:
        assert hub.instances == ()
        with pytest.raises(Exception, match="model:huge"):
            await llm.execute("llm/chat", {**CHAT, "model": "huge"})
        answer = await llm.execute("llm/chat", CHAT)
        assert answer["message"]["content"] == "You said: hi"
        assert len(hub.instances) == 1


async def test_it_gets_its_environment_and_no_more_of_ours(
    managed: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where to listen, where the models are and what is configured; settings of Gleitzeit's own stay here."""
    monkeypatch.setenv("GLEITZEIT_GATEWAY__KEYS", "[secret]")
    monkeypatch.setenv("OLLAMA_HOST", "elsewhere:1")
    file = tmp_path / "environment"
    options = managed(
        command=["sh", "-c", f"env > {file}; exit 1"], environment={"OLLAMA_KEEP_ALIVE": "5m"}, models_dir=str(tmp_path)
    )
    dispatcher = Dispatcher()
    await dispatcher.shell.add_hub(OllamaHub(checked_options(options)))
    await dispatcher.aclose()
    lines = file.read_text().splitlines()
    assert "OLLAMA_KEEP_ALIVE=5m" in lines
    assert f"OLLAMA_MODELS={tmp_path}" in lines
    assert any(line.startswith("OLLAMA_HOST=127.0.0.1:") for line in lines)
    assert not any(line.startswith("GLEITZEIT_") for line in lines)


async def test_it_listens_in_the_range_of_ports_but_not_where_another_does(
    pool: StartPool, managed: Callable[..., dict[str, Any]]
) -> None:
    """A port that is taken is passed over, and who listens there gets nothing of ours."""
    async with OllamaServer(models=["other"]) as other:
        # The first server begins to look at the second port.
        first, last = other.port - 1, other.port + 8
        pooled = await pool(**managed(ports=[first, last]))
        ((url, state),) = pooled.states().items()
        assert state == "ready"
        assert int(url.rpartition(":")[2]) in set(range(first, last + 1)) - {other.port}
        assert other.requests == []


async def test_a_log_begins_anew_and_the_one_before_is_kept(managed: Callable[..., dict[str, Any]]) -> None:
    """So that what made a server end can still be read."""
    async with OllamaServer() as server:
        port = server.port
    with_port = managed(ports=[port, port])
    for _ in range(2):
        dispatcher = Dispatcher()
        hub = OllamaHub(checked_options(with_port))
        await dispatcher.shell.add_hub(hub)
        log = Path(hub.instances[0].details["log"])
        await dispatcher.aclose()
    assert read(log)
    assert read(log.with_suffix(".log.1"))


async def test_logs_do_not_pile_up(pool: StartPool, managed: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """The oldest of servers that have ended go; those of servers that run, and of other hubs, stay."""
    state = tmp_path / "state"
    state.mkdir()
    for number in range(30):
        old = state / f"ollama-{1000 + number}.log"
        old.write_text("")
        os.utime(old, (number, number))
    (state / "ollama-1000.json").write_text("")
    (state / "ollama-2-1001.log").write_text("")
    os.utime(state / "ollama-2-1001.log", (0, 0))
    claim = Claim.take(state / "ollama-1000.json")
    assert claim is not None
    await pool(**managed())
    left = {path.name for path in state.glob("*.log")}
    claim.drop()
    assert {"ollama-1000.log", "ollama-2-1001.log", "ollama-1029.log"} <= left
    assert "ollama-1001.log" not in left
    assert len(left) == 16 + 1 + 1 + 1, "those kept, that of one that runs, that of another hub, and the new one"


# -- changes while all is running -------------------------------------------------------------------------------------------


async def test_other_bounds_need_no_restart(pool: StartPool, managed: Callable[..., dict[str, Any]]) -> None:
    """More are started, fewer are kept, and what counts for each is changed; how they are started is not."""
    pooled = await pool(**managed(max_total=2))
    hub = pooled.hub
    (first,) = hub.instances
    two = checked_options(managed(min_total=2, max_total=2, weight=3))
    assert await hub.reconfigure(two)
    await pooled.until(lambda: list(pooled.states().values()) == ["ready", "ready"])
    assert {instance.weight for instance in hub.instances} == {3}
    assert first.id in {instance.id for instance in hub.instances}
    assert not await hub.reconfigure(checked_options(managed("--num-parallel=2", min_total=2, max_total=2)))
    assert hub.options == two
    assert await hub.reconfigure(checked_options(managed()))
    await pooled.until(lambda: len(hub.instances) == 1)


async def test_one_that_is_removed_by_hand_is_ended_and_another_comes(
    pool: StartPool, managed: Callable[..., dict[str, Any]]
) -> None:
    """The least number holds."""
    pooled = await pool(**managed())
    (first,) = pooled.hub.instances
    with pytest.raises(InvalidRequest, match="was started here"):
        await pooled.dispatcher.shell.add_instance("ollama", {"url": first.endpoint})
    ended = gone(pid(first))
    await pooled.dispatcher.shell.remove_instance(first.id)
    assert ended()
    await pooled.until(lambda: list(pooled.states().values()) == ["ready"])
    assert pid(pooled.hub.instances[0]) != pid(first)


# -- options ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"command": []}, "command: needs 1 or more entries"),
        ({"min_total": 2}, "min_total must not be above max_total"),
        ({"ports": [20000, 20000], "max_total": 2}, "'ports' must be the first and the last port"),
        ({"ports": [20001, 20000]}, "'ports' must be the first and the last port"),
        ({"ports": [0, 5]}, "managed.ports[0]: must be at least 1"),
        ({"environment": {"OLLAMA_HOST": "x"}}, "OLLAMA_HOST cannot be set here: 'ports' says it"),
        ({"environment": {"OLLAMA_MODELS": "x"}}, "OLLAMA_MODELS cannot be set here: 'models_dir' says it"),
        ({"environment": {"A=B": "x"}}, "no environment can have"),
        ({"stop_timeout_s": -1}, "stop_timeout_s: must be at least 0"),
        ({"idle_ttl_s": 0}, "idle_ttl_s: must be above 0"),
        ({"comand": ["x"]}, "managed.comand: unknown key (did you mean 'command'"),
    ],
)
def test_wrong_options_are_told_with_their_path(options: dict[str, Any], message: str) -> None:
    """Each mistake is one line that names the place and says what is wrong."""
    with pytest.raises(ConfigurationError) as caught:
        ResourceManager.from_config(overrides={"hubs": {"lan": {"type": "ollama", "managed": options}}})
    assert message in str(caught.value)


def test_the_shortest_form_starts_one_and_looks_for_no_others() -> None:
    """`managed: {}` is one `ollama serve` at any free port."""
    options = checked_options({"managed": {}})
    assert options.managed is not None
    assert (options.managed.command, options.discover) == (["ollama", "serve"], False)
    assert (options.managed.min_total, options.managed.max_total, options.managed.ports) == (1, 1, None)


def test_paths_are_relative_to_the_configuration_and_values_are_secret(tmp_path: Path) -> None:
    """Wherever the program was started; a variable may hold the password of a proxy."""
    config = tmp_path / "gleitzeit.yaml"
    config.write_text(
        "hubs: {lan: {type: ollama, managed: {models_dir: m, environment: {HTTPS_PROXY: 'http://me:hunter22@p'}}}}"
    )
    options: Any = ResourceManager.from_config(config).config.hubs["lan"].options
    assert options.managed.models_dir == tmp_path / "m"
    assert "hunter22" not in repr(options)


# -- the command line ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("running", [True, False])
async def test_models_are_pulled_to_servers_of_our_own(
    running: bool,  # noqa: FBT001 - a parameter of the test
    pool: StartPool,
    managed: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """To those that a gateway has started, which stay; where none runs one is started for the command, and ended."""
    monkeypatch.chdir(tmp_path)
    options = managed('--pullable={"big": 1000}')
    (tmp_path / "gleitzeit.yaml").write_text(json.dumps({"hubs": {"ollama": {"type": "ollama", **options}}}))
    if running:
        pooled = await pool(**options)
        (instance,) = pooled.hub.instances
        ended = gone(pid(instance))
    assert await asyncio.to_thread(main, ("models", "pull", "big", "--json")) == 0
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert lines[-1]["status"] == "success"
    if running:
        assert {line["instance"] for line in lines} == {instance.id}
        assert not ended()
        assert await pooled.check(instance.endpoint) == "ready"
        assert "model:big" in pooled.models(instance.endpoint)
    else:
        assert list((tmp_path / "state").glob("*.json")) == []
