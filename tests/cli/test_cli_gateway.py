"""Commands that ask a gateway: what they show, to people and to programs."""

from __future__ import annotations

import json
import os
import threading
from typing import TYPE_CHECKING, Any

from tests.cli.asking import CHAT, RUN, STREAM, part
from tests.cli.samples import DOWN, INSTANCE, STATUS

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from tests.cli.conftest import Ended, Exchange, Gateway

    Cli = Callable[..., Ended]
    Program = Callable[..., subprocess.Popen[str]]

TAGS: dict[str, Any] = {
    "models": [
        {"name": "tiny", "model": "tiny", "modified_at": "0001-01-01T00:00:00Z", "size": 0, "digest": ""},
        {
            "name": "big",
            "modified_at": "2026-11-20T10:11:12Z",
            "size": 5_500_000_000,
            "digest": "abc",
            "details": {"family": "llama", "parameter_size": "8B", "quantization_level": "Q4_0"},
        },
    ]
}


def test_status(cli: Cli, gateway: Gateway) -> None:
    """The summary and a line for each instance."""
    gateway.on("GET /admin/status", lambda exchange: exchange.json(STATUS))
    ended = cli("status", "--gateway", gateway.url)
    assert (ended.status, ended.err) == (0, "")
    assert f"gateway        {gateway.url}, version 0.1.0, up 2.03 h\n" in ended.out
    assert "configuration  none: the defaults\n" in ended.out
    assert "requests       1 active, 2 waiting; 199 ok, 1 failed\n" in ended.out
    assert "hubs           lan (ollama, 2)\nroutes         llm/*: least_loaded\n" in ended.out
    first, second = ended.out.splitlines()[-2:]
    assert first.split() == [
        *("ollama-gpu1-1a2b3c4d", "lan", "ready", "1/4", "200", "99.5%", "250", "ms", "1.5", "s", "big,", "tiny*", "-")
    ]
    assert second.split() == [
        "ollama-gpu2-2b3c4d5e",
        "lan",
        "down",
        "1/4",
        "0",
        "-",
        "-",
        "-",
        "big,",
        "tiny",
        "refused",
    ]


def test_status_tells_of_hedges(cli: Cli, gateway: Gateway) -> None:
    """Once there were some."""
    hedged = {**STATUS, "hedges": {"started": 7, "won": 5}}
    gateway.on("GET /admin/status", lambda exchange: exchange.json(hedged))
    assert "hedges         7 begun, 5 answered first\n" in cli("status", "--gateway", gateway.url).out
    gateway.on("GET /admin/status", lambda exchange: exchange.json({**STATUS, "hedges": {"started": 0, "won": 0}}))
    assert "hedges" not in cli("status", "--gateway", gateway.url).out


def test_status_tells_of_hubs_with_a_problem(cli: Cli, gateway: Gateway) -> None:
    """On a line that is there only then; routes show their filters before what picks."""
    well, unwell = ({**STATUS["hubs"][0], "problem": problem} for problem in ("", "nothing can be created: no ollama"))
    routes = [{**STATUS["routes"][0], "strategy": "locality -> least_loaded"}]
    gateway.on("GET /admin/status", lambda exchange: exchange.json({**STATUS, "hubs": [well], "routes": routes}))
    out = cli("status", "--gateway", gateway.url).out
    assert "problems" not in out
    assert "routes         llm/*: locality -> least_loaded\n" in out
    found = {**STATUS, "hubs": [well, {**unwell, "name": "own"}]}
    gateway.on("GET /admin/status", lambda exchange: exchange.json(found))
    out = cli("status", "--gateway", gateway.url).out
    assert "hubs           lan (ollama, 2), own (ollama, 2, degraded)\n" in out
    assert "problems       own: nothing can be created: no ollama\n" in out


def test_instances_tell_of_hubs_with_a_problem(cli: Cli, gateway: Gateway) -> None:
    """Or an empty list would say nothing of why; on standard error, where it does not come between what is read."""
    gateway.on("GET /admin/status", lambda exchange: exchange.json(STATUS))
    well = cli("instances", "--gateway", gateway.url)
    hub = {**STATUS["hubs"][0], "name": "own", "problem": "nothing can be created: no ollama"}
    gateway.on("GET /admin/status", lambda exchange: exchange.json({**STATUS, "hubs": [*STATUS["hubs"], hub]}))
    unwell = cli("instances", "--gateway", gateway.url)
    assert (well.err, unwell.err) == ("", "Warning: degraded hub own: nothing can be created: no ollama\n")
    assert well.out == unwell.out
    assert cli("instances", "--json", "--gateway", gateway.url).err == ""


def test_status_for_programs(cli: Cli, gateway: Gateway) -> None:
    """All that the gateway says, as it says it."""
    gateway.on("GET /admin/status", lambda exchange: exchange.json(STATUS))
    assert cli("status", "--gateway", gateway.url, "--json").json() == STATUS


def test_instances(cli: Cli, gateway: Gateway) -> None:
    """The table alone, and the records for programs."""
    gateway.on("GET /admin/status", lambda exchange: exchange.json(STATUS))
    ended = cli("instances", "--gateway", gateway.url)
    assert [line.split()[0] for line in ended.out.splitlines()] == ["ID", INSTANCE["id"], DOWN["id"]]
    assert cli("instances", "--gateway", gateway.url, "--json").json() == {"instances": [INSTANCE, DOWN]}


def test_models(cli: Cli, gateway: Gateway) -> None:
    """By name; what is unknown is a dash, or null for programs."""
    gateway.on("GET /api/tags", lambda exchange: exchange.json(TAGS))
    ended = cli("models", "--gateway", gateway.url)
    assert [line.split() for line in ended.out.splitlines()[1:]] == [
        ["big", "8B", "Q4_0", "5.5", "GB", "2026-11-20"],
        ["tiny", "-", "-", "-", "-"],
    ]
    big, tiny = cli("models", "--gateway", gateway.url, "--json").json()["models"]
    assert big == {
        "name": "big",
        "family": "llama",
        "parameters": "8B",
        "quantization": "Q4_0",
        "size_bytes": 5_500_000_000,
        "modified_at": "2026-11-20T10:11:12Z",
        "digest": "abc",
        "alias_of": None,
        "stale": False,
    }
    assert {value for key, value in tiny.items() if key not in ("name", "stale")} == {None}
    assert tiny["stale"] is False


def test_models_that_are_aliases_or_stale(cli: Cli, gateway: Gateway) -> None:
    """Both are told, in a column that is there only then."""
    entries = [*TAGS["models"], {"name": "gpt", "alias_of": "big", "stale": True}, {"name": "old", "stale": True}]
    gateway.on("GET /api/tags", lambda exchange: exchange.json({"models": entries, "stale": ["a"]}))
    head, *rows = cli("models", "--gateway", gateway.url).out.splitlines()
    assert head.split()[-1] == "NOTE"
    said = {row.split()[0]: row.split("  ")[-1].strip() for row in rows}
    assert said == {"big": "-", "gpt": "alias of big, stale", "old": "stale", "tiny": "-"}
    models = cli("models", "--gateway", gateway.url, "--json").json()["models"]
    assert [(model["alias_of"], model["stale"]) for model in models] == [
        (None, False),
        ("big", True),
        (None, True),
        (None, False),
    ]


def test_chat_prints_the_answer_as_it_comes(program: Program, gateway: Gateway) -> None:
    """Each part is there before the next is sent."""
    go_on = threading.Event()

    def answer(exchange: Exchange) -> None:
        exchange.begin()
        exchange.line(part("Hel"))
        go_on.wait()
        exchange.line(part("lo"))
        exchange.line(part("", done=True))
        exchange.end()

    gateway.on("POST /api/chat", answer)
    process = program("chat", "--gateway", gateway.url, "-m", "tiny", "--system", "Be brief.", "hi")
    assert process.stdout is not None
    assert process.stdout.read(3) == "Hel"
    go_on.set()
    assert process.communicate() == ("lo\n", "")
    assert process.returncode == 0
    assert gateway.seen[-1].body == {
        "model": "tiny",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
        "stream": True,
    }


def test_run(cli: Cli, gateway: Gateway) -> None:
    """One call in JSON-RPC 2.0; an object is printed as JSON, text as it is, and with --json everything on one line."""
    answers: list[Any] = [{"a": [1]}, "just text", {"a": 1}, "text"]
    gateway.on("POST /rpc", lambda exchange: exchange.json({"jsonrpc": "2.0", "id": 1, "result": answers.pop(0)}))
    command = ["run", "echo/say", "--gateway", gateway.url, "--param", "n=3"]
    assert cli(*command).out == '{\n  "a": [\n    1\n  ]\n}\n'
    assert cli(*command).out == "just text\n"
    assert cli(*command, "--json").out == '{"a": 1}\n'
    assert cli(*command, "--json").out == '"text"\n'
    assert gateway.seen[-1].body == {"jsonrpc": "2.0", "id": 1, "method": "echo/say", "params": {"n": 3}}


def test_run_in_parts(cli: Cli, gateway: Gateway) -> None:
    """Parts that are text are joined; others are lines of JSON, as all are with --json."""
    texts = [{"part": "one "}, {"part": "two"}, {"done": True}]
    gateway.on("POST /rpc", lambda exchange: exchange.lines(*texts))
    assert cli(*STREAM, "--gateway", gateway.url).out == "one two\n"
    assert cli(*STREAM, "--gateway", gateway.url, "--json").out == '"one "\n"two"\n'
    assert gateway.seen[-1].body["stream"] is True
    gateway.on("POST /rpc", lambda exchange: exchange.lines({"part": {"n": 1}}, {"part": {"n": 2}}, {"done": True}))
    assert cli(*STREAM, "--gateway", gateway.url).out == '{"n": 1}\n{"n": 2}\n'


def test_what_servers_say_does_not_command_the_terminal(gateway: Gateway, terminal: Callable[..., Any]) -> None:
    """Escape sequences in names, errors and answers are made visible; into a pipe answers stay exact."""
    evil = "\x1b[2Jevil"
    gateway.on("GET /api/tags", lambda exchange: exchange.json({"models": [{"name": evil}]}))
    gateway.on("POST /api/chat", lambda exchange: exchange.lines(part(evil), part("", done=True)))
    gateway.on("POST /rpc", lambda exchange: exchange.json({"error": {"message": evil}}))
    for command in (["models"], CHAT, RUN):
        shown = terminal(*command, "--gateway", gateway.url, env={**os.environ, "TERM": "xterm"}).rest()
        assert "\\x1b[2Jevil" in shown
        assert "\x1b[2J" not in shown


def test_answers_in_a_pipe_are_exact(cli: Cli, gateway: Gateway) -> None:
    """A program that reads an answer gets every byte of it."""
    gateway.on("POST /rpc", lambda exchange: exchange.json({"result": "a\x1b[0m\tb\r"}))
    assert cli(*RUN, "--gateway", gateway.url).out == "a\x1b[0m\tb\r\n"
    assert json.loads(cli(*RUN, "--gateway", gateway.url, "--json").out) == "a\x1b[0m\tb\r"
