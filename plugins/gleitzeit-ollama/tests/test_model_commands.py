"""``gleitzeit models copy``, ``rm``, ``show``, ``load`` and ``unload``, with the servers themselves."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from gleitzeit_core.resources import instance_id
from gleitzeit_ollama.testing import Model, OllamaServer, Status

from .program import Done, gleitzeit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    Run = Callable[..., Awaitable[Done]]
    Pair = tuple[OllamaServer, OllamaServer]


@pytest.fixture
async def pair() -> AsyncIterator[tuple[OllamaServer, OllamaServer]]:
    """Two servers with one model each."""
    async with OllamaServer(registry={"big": 10}) as one, OllamaServer(registry={"big": 10}) as two:
        yield one, two


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: Pair) -> Run:
    """Runs the program in a thread of this process, with both servers in its configuration."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    hubs = {"lan": {"type": "ollama", "instances": [server.url for server in pair]}}
    (tmp_path / "gleitzeit.yaml").write_text(json.dumps({"hubs": hubs, "gateway": {"port": 1}}))

    async def go(*arguments: str) -> Done:
        return await gleitzeit(capfd, "models", *arguments)

    return go


def _ids(*servers: OllamaServer) -> list[str]:
    return [instance_id("ollama", server.url) for server in servers]


def _have(model: str, *servers: OllamaServer) -> list[bool]:
    return [server.catalogue.find(model) is not None for server in servers]


async def test_replicas_choose_how_many(run: Run, pair: Pair) -> None:
    """With --replicas so many have the model in the end; those that have it already count, and are updated."""
    pair[0].catalogue.add(Model("big"))
    assert (await run("pull", "big", "--replicas", "1")).status == 0
    assert _have("big", *pair) == [True, False]
    assert (await run("pull", "big", "--replicas", "2")).status == 0
    assert _have("big", *pair) == [True, True]
    assert len([record for record in pair[0].requests if record.path == "/api/pull"]) == 2


async def test_more_replicas_than_servers(run: Run, pair: Pair) -> None:
    """Nothing is pulled, and what there is is told: fewer than were asked for must not look like success."""
    done = await run("pull", "big", "--replicas", "3")
    assert done.status == 1
    assert "3 servers are to have it, and there are 2 to choose from" in done.err
    assert _have("big", *pair) == [False, False]


async def test_replicas_and_names_exclude_each_other(run: Run, pair: Pair) -> None:
    """Both choose the servers."""
    done = await run("pull", "big", "--replicas", "2", "--instance", pair[0].url)
    assert (done.status, "give one of them" in done.err) == (2, True)
    assert (await run("pull", "big", "--replicas", "0")).status == 2


async def test_copy_is_made_wherever_the_model_is(run: Run, pair: Pair) -> None:
    """The instances that made it are named; others lack the model and are passed over."""
    one, two = pair
    one.catalogue.add(Model("mine"))
    done = await run("copy", "mine", "other")
    assert (done.status, done.out) == (0, f"made other on {_ids(one)[0]}\n")
    assert _have("other", one, two) == [True, False]


async def test_rm_deletes_several_everywhere(run: Run, pair: Pair) -> None:
    """Each name is a line; with --instance only there."""
    one, two = pair
    one.catalogue.add(Model("mine"))
    done = await run("rm", "mine", "smollm2", "--json")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert lines == [{"model": "mine", "instances": _ids(one)}, {"model": "smollm2", "instances": _ids(one, two)}]
    assert _have("smollm2", one, two) == [False, False]
    two.catalogue.add(Model("x"))
    one.catalogue.add(Model("x"))
    assert (await run("rm", "x", "--instance", two.url)).status == 0
    assert _have("x", one, two) == [True, False]


async def test_rm_of_what_is_not_there(run: Run, pair: Pair) -> None:
    """The server's own words, status 1, and what came before is gone."""
    done = await run("rm", "smollm2", "nope")
    assert (done.status, done.err.splitlines()[-1]) == (1, "Error: model 'nope' not found")
    assert _have("smollm2", *pair) == [False, False]


async def test_show_tells_people_and_programs(run: Run) -> None:
    """People get the facts, programs all of it."""
    done = await run("show", "smollm2")
    assert done.status == 0
    facts = dict(line.split(None, 1) for line in done.out.splitlines() if line[0] != " ")
    assert facts["parameters"] == "134.52M"
    assert facts["quantization"] == "Q4_1"
    assert facts["context"] == "8192"
    assert facts["can"] == "completion"
    shown = (await run("show", "smollm2", "--json")).json
    assert shown["model_info"]["general.architecture"] == "llama"
    missing = await run("show", "nope")
    assert (missing.status, "model 'nope' not found" in missing.err) == (1, True)


async def test_load_and_unload(run: Run, pair: Pair) -> None:
    """Loaded on one, or where it is named; unloaded wherever it is in memory."""
    one, two = pair
    done = await run("load", "smollm2", "--keep-alive", "1h", "--json")
    assert (done.status, len(done.json["instances"])) == (0, 1)
    assert sum(len(server.runners.loaded()) for server in pair) == 1
    named = [word for server in pair for word in ("--instance", server.url)]
    assert (await run("load", "smollm2", *named)).status == 0
    assert [len(server.runners.loaded()) for server in pair] == [1, 1]
    done = await run("unload", "smollm2", "--json")
    assert sorted(done.json["instances"]) == sorted(_ids(one, two))
    assert [len(server.runners.loaded()) for server in pair] == [0, 0]
    assert "on no instance" in (await run("unload", "smollm2")).out


@pytest.mark.parametrize(("given", "sent"), [("-1", -1), ("90", 90), ("30m", "30m")])
async def test_keep_alive_is_a_number_or_has_a_unit(run: Run, pair: Pair, given: str, sent: object) -> None:
    """As Ollama reads it: a number is in seconds, below zero for ever."""
    assert (await run("load", "smollm2", "--keep-alive", given, "--instance", pair[0].url)).status == 0
    (record,) = [record for record in pair[0].requests if record.path == "/api/generate"]
    assert json.loads(record.body)["keep_alive"] == sent


async def test_a_load_that_fails_is_told(run: Run, pair: Pair) -> None:
    """With the server's words."""
    for server in pair:
        server.script.next(Status(500, {"error": "not enough memory"}), on="/api/generate")
    done = await run("load", "smollm2")
    assert (done.status, done.err.splitlines()[-1]) == (1, "Error: not enough memory")


async def test_a_url_need_not_be_configured(run: Run) -> None:
    """A server that is named by its URL is asked all the same; other unknown names are told."""
    async with OllamaServer(models=["theirs"]) as stranger:
        done = await run("copy", "theirs", "ours", "--instance", stranger.url)
        assert done.status == 0
        assert _have("ours", stranger) == [True]
    done = await run("rm", "smollm2", "--instance", "gpu9")
    assert (done.status, "unknown instance 'gpu9'" in done.err) == (2, True)


@pytest.mark.parametrize("arguments", [("copy", "x"), ("rm",), ("show",), ("load",), ("unload",)])
async def test_what_is_missing_is_told(run: Run, arguments: tuple[str, ...]) -> None:
    """A name that was not given is a mistake of usage."""
    done = await run(*arguments)
    assert (done.status, "Missing argument" in done.err) == (2, True)


@pytest.mark.parametrize("name", ["copy", "rm", "show", "load", "unload", "pull"])
async def test_help_has_examples(run: Run, name: str) -> None:
    """Each is listed by `gleitzeit models --help`, and its own help shows how to call it."""
    assert name in (await run("--help")).out
    assert f"gleitzeit models {name}" in (await run(name, "--help")).out
