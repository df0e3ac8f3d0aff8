from __future__ import annotations

import json
import os
import select
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.cli.client import GatewayClient, GatewayDown, GatewayError
from gleitzeit_core.cli.connection import Connection
from gleitzeit_core.cli.context import Invocation
from tests.cli.samples import DOWN, INSTANCE, STATUS

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Ended, Exchange, Gateway

    Cli = Callable[..., Ended]
    Install = Callable[..., None]
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
CHAT = ["chat", "-m", "tiny", "hi"]
RUN = ["run", "echo/say"]
STREAM = ["run", "echo/say", "--stream"]
ASKING = {
    "status": (["status"], "GET /admin/status"),
    "instances": (["instances"], "GET /admin/status"),
    "models": (["models"], "GET /api/tags"),
    "chat": (CHAT, "POST /api/chat"),
    "run": (RUN, "POST /rpc"),
    "stream": (STREAM, "POST /rpc"),
    "queues": (["queues"], "GET /admin/queues"),
    "metrics": (["metrics"], "GET /admin/metrics?window=recent"),
    "top": (["top"], "GET /admin/status"),
    "usage": (["usage"], "GET /admin/usage?by=key&window=total"),
    "reload": (["reload"], "POST /admin/reload"),
    "events": (["events", "--once"], "GET /admin/events"),
    "add": (["instances", "add", "http://gpu3:11434"], "POST /admin/instances"),
    "drain": (["instances", "drain", "gpu1"], "GET /admin/instances"),
}
EVERY = pytest.mark.parametrize(("arguments", "what"), ASKING.values(), ids=list(ASKING))


def part(text: str, *, done: bool = False) -> dict[str, Any]:
    """One part of a chat."""
    return {"model": "tiny", "message": {"role": "assistant", "content": text}, "done": done}


# -- what they show


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
    }
    assert {value for key, value in tiny.items() if key != "name"} == {None}


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


# -- where the gateway is


@pytest.mark.parametrize(
    ("section", "host"),
    [
        ("{port: PORT}", "127.0.0.1"),
        ("{host: localhost, port: PORT}", "localhost"),
        ('{host: "0.0.0.0", port: PORT, keys: [x]}', "127.0.0.1"),
    ],
)
def test_the_configuration_says_where_it_is(
    cli: Cli, gateway: Gateway, tmp_path: Path, section: str, host: str
) -> None:
    """Its section `gateway` is read even if the plugin is not installed; all addresses means this machine."""
    (tmp_path / "gleitzeit.yaml").write_text("gateway: " + section.replace("PORT", str(gateway.port)))
    gateway.on("GET /admin/status", lambda exchange: exchange.json(STATUS))
    assert cli("status").status == 0
    assert gateway.seen[-1].headers["Host"] == f"{host}:{gateway.port}"


def test_the_environment_and_the_flag_go_before_the_file(
    cli: Cli, gateway: Gateway, tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GLEITZEIT_GATEWAY__PORT as everywhere, and --gateway before all; a scheme may be left out."""
    gateway.on("GET /admin/status", lambda exchange: exchange.json(STATUS))
    (tmp_path / "gleitzeit.yaml").write_text(f"gateway: {{port: {free_port}}}")
    assert cli("status").status == 1
    assert cli("status", "--gateway", f"127.0.0.1:{gateway.port}").status == 0
    monkeypatch.setenv("GLEITZEIT_GATEWAY__PORT", str(gateway.port))
    assert cli("status").status == 0


@pytest.mark.parametrize(
    ("section", "url"),
    [
        ("{}", "http://127.0.0.1:8484"),
        ("", "http://127.0.0.1:8484"),
        ("{host: null, port: null}", "http://127.0.0.1:8484"),
        ('{host: "::"}', "http://[::1]:8484"),
        ('{host: "[::1]", port: 1}', "http://[::1]:1"),
        ("{host: gpu1}", "http://gpu1:8484"),
    ],
)
def test_addresses_from_the_configuration(tmp_path: Path, section: str, url: str) -> None:
    """Defaults where nothing stands, and brackets around IPv6."""
    (tmp_path / "gleitzeit.yaml").write_text(f"gateway: {section}")
    assert Connection("", "").client(Invocation()).url == url


@pytest.mark.parametrize("section", ["{port: abc}", "{port: 0}", "{port: 70000}", "{port: true}", "{host: [1]}", "[1]"])
def test_an_address_that_is_none_is_an_error_of_the_configuration(cli: Cli, tmp_path: Path, section: str) -> None:
    """The status is 2, and the section is named."""
    (tmp_path / "gleitzeit.yaml").write_text(f"gateway: {section}")
    ended = cli("status")
    assert ended.status == 2
    assert "gleitzeit.yaml:1: gateway" in ended.err


@pytest.mark.parametrize(
    "url", ["ftp://x", "http://", "http://[::1", "http://x:99999", "http://x/?a=b", "http://u:p@x"]
)
def test_a_flag_that_is_no_address_is_refused(cli: Cli, url: str) -> None:
    """Called wrongly, and told what an address looks like."""
    ended = cli("status", "--gateway", url)
    assert ended.status == 2
    assert "http://127.0.0.1:8484" in ended.err


def test_a_path_before_the_gateway_is_kept(cli: Cli, gateway: Gateway) -> None:
    """A gateway behind another server may be below a path."""
    gateway.on("GET /pool/admin/status", lambda exchange: exchange.json(STATUS))
    assert cli("status", "--gateway", f"{gateway.url}/pool/").status == 0


# -- keys


@EVERY
def test_a_gateway_that_wants_a_key(cli: Cli, gateway: Gateway, arguments: list[str], what: str) -> None:
    """Without a key: how to give one. With a wrong one: that it is wrong. The key is never shown."""
    del what
    gateway.key = "right-key-of-the-gateway"
    ended = cli(*arguments, "--gateway", gateway.url)
    assert (ended.status, ended.out) == (1, "")
    assert ended.err == f"Error: the gateway at {gateway.url} wants a key: use --key or GLEITZEIT_KEY\n"
    ended = cli(*arguments, "--gateway", gateway.url, "--key", "wrong-key")
    assert (ended.status, ended.err) == (1, f"Error: the gateway at {gateway.url} does not accept this key\n")


def test_a_key_from_the_flag_or_the_environment(cli: Cli, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is sent as a bearer token."""
    gateway.key = "right-key-of-the-gateway"
    gateway.on("GET /admin/status", lambda exchange: exchange.json(STATUS))
    assert cli("status", "--gateway", gateway.url, "--key", gateway.key).status == 0
    monkeypatch.setenv("GLEITZEIT_KEY", gateway.key)
    assert cli("status", "--gateway", gateway.url).status == 0


@pytest.mark.parametrize("key", ["a\r\nb", "schlüssel", "tab\there"])
def test_a_key_that_cannot_be_sent_is_refused(cli: Cli, gateway: Gateway, key: str) -> None:
    """And not shown."""
    ended = cli("status", "--gateway", gateway.url, "--key", key)
    assert ended.status == 2
    assert ended.err.startswith("Error: a key has only printable ASCII characters")
    assert not gateway.seen


def test_no_representation_shows_the_key() -> None:
    """Neither of the client nor of what the flags said."""
    connection = Connection("http://x", "hush-hush")
    assert "hush" not in repr(connection) + repr(connection.client(Invocation()))


# -- what can go wrong


@EVERY
def test_nothing_listens(cli: Cli, free_port: int, arguments: list[str], what: str) -> None:
    """A gateway that was named must be there; the error says how to start one."""
    del what
    ended = cli(*arguments, "--gateway", f"http://127.0.0.1:{free_port}")
    assert (ended.status, ended.out) == (1, "")
    message = f"Error: no gateway at http://127.0.0.1:{free_port}: Connection refused; 'gleitzeit serve' starts one\n"
    assert ended.err == message


@pytest.mark.parametrize("command", ["status", "instances"])
def test_commands_about_a_running_gateway_need_one(cli: Cli, tmp_path: Path, free_port: int, command: str) -> None:
    """They do not start anything themselves."""
    (tmp_path / "gleitzeit.yaml").write_text(f"gateway: {{port: {free_port}}}")
    ended = cli(command)
    assert ended.status == 1
    assert "'gleitzeit serve' starts one" in ended.err


def test_a_name_that_does_not_resolve(cli: Cli) -> None:
    """Is a gateway that is not there."""
    ended = cli("status", "--gateway", "http://no-such-host.invalid:1")
    assert ended.status == 1
    assert ended.err.startswith("Error: no gateway at http://no-such-host.invalid:1: ")
    assert cli("status", "--gateway", "http://" + "x" * 70 + ".invalid").status == 1


@EVERY
@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"<html>hello</html>", 200, "something that is not a JSON object"),
        (b"[1, 2]", 200, "something that is not a JSON object"),
        (b"\xff\xfe", 200, "something that is not a JSON object"),
        (b"<html>no</html>", 500, "500 Internal Server Error"),
        (b"", 302, "302 Found"),
        (b"404 page not found", 404, "that it has no /"),
    ],
)
def test_something_else_listens(
    cli: Cli, gateway: Gateway, arguments: list[str], what: str, body: bytes, status: int, said: str
) -> None:
    """Whatever it answers over HTTP, one sentence says so and asks whether it is a gateway."""
    gateway.on(what, lambda exchange: exchange.raw(body, status, "text/html"))
    ended = cli(*arguments, "--gateway", gateway.url)
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.startswith(f"Error: {gateway.url} answered {said}")
    assert ended.err.endswith("is it a Gleitzeit gateway?\n")


@EVERY
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "answered something that is not HTTP"),
        (b"", "broke off"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", "broke off"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "broke off"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200, "answered something that is not HTTP"),
    ],
)
def test_something_that_does_not_speak_http(
    cli: Cli, stranger: Callable[[bytes], str], arguments: list[str], what: str, answer: bytes, said: str
) -> None:
    """Garbage and a connection that is closed are told apart, and neither is a traceback."""
    del what
    ended = cli(*arguments, "--gateway", stranger(answer))
    assert (ended.status, ended.out) == (1, "")
    assert said in ended.err
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (["status"], {"version": "0.1.0"}),
        (["status"], {**STATUS, "instances": [{"id": "x"}]}),
        (["status"], {**STATUS, "requests": [1]}),
        (["instances"], {"instances": 3}),
        (["instances", "--json"], {}),
        (["models"], {"models": [{"size": 3}]}),
        (["models"], {}),
        (RUN, {"jsonrpc": "2.0"}),
    ],
)
def test_answers_of_another_shape(cli: Cli, gateway: Gateway, command: list[str], answer: dict[str, Any]) -> None:
    """JSON that is not what was asked for is told, whatever is missing in it."""
    for what in ("GET /admin/status", "GET /api/tags", "POST /rpc"):
        gateway.on(what, lambda exchange: exchange.json(answer))
    ended = cli(*command, "--gateway", gateway.url)
    assert (ended.status, ended.out) == (1, "")
    assert "is it a Gleitzeit gateway" in ended.err


@pytest.mark.parametrize(
    ("command", "body", "status", "message"),
    [
        (
            RUN,
            {"error": {"code": -32000, "message": "queue is full", "data": {"code": "queue_full"}}},
            200,
            "queue is full",
        ),
        (RUN, {"error": {"code": -32601, "message": "unknown method"}}, 404, "unknown method"),
        (STREAM, {"error": {"code": -32601, "message": "unknown method"}}, 200, "unknown method"),
        (CHAT, {"error": "model 'tiny' not found"}, 404, "model 'tiny' not found"),
        (["models"], {"error": "shutting down"}, 503, "shutting down"),
        (["status"], {"error": {"code": "forbidden", "message": "not for you"}}, 403, "not for you"),
    ],
)
def test_errors_that_the_gateway_reports(
    cli: Cli, gateway: Gateway, command: list[str], body: dict[str, Any], status: int, message: str
) -> None:
    """In whichever API's shape, with whichever status: its sentence is the error."""
    for what in ("GET /admin/status", "GET /api/tags", "POST /rpc", "POST /api/chat"):
        gateway.on(what, lambda exchange: exchange.json(body, status))
    ended = cli(*command, "--gateway", gateway.url)
    assert (ended.status, ended.out, ended.err) == (1, "", f"Error: {message}\n")


def test_codes_of_errors_are_kept(gateway: Gateway) -> None:
    """Those who use the client see the gateway's own code."""
    client = GatewayClient(gateway.url)
    gateway.on(
        "POST /rpc", lambda e: e.json({"error": {"code": -32000, "message": "m", "data": {"code": "queue_full"}}})
    )
    with pytest.raises(GatewayError) as raised:
        client.call("a/b", {}, None)
    assert (raised.value.code, repr(client)) == ("queue_full", f"<GatewayClient {gateway.url}>")


# -- streams that break


@pytest.mark.parametrize("clean", [True, False])
def test_a_chat_without_its_end_is_an_error(cli: Cli, gateway: Gateway, *, clean: bool) -> None:
    """What came is printed, and then that it broke off, however cleanly the connection ended."""

    def answer(exchange: Exchange) -> None:
        exchange.begin()
        exchange.line(part("Hel"))
        if clean:
            exchange.end()

    gateway.on("POST /api/chat", answer)
    ended = cli(*CHAT, "--gateway", gateway.url)
    assert (ended.status, ended.out) == (1, "Hel\n")
    assert ended.err == f"Error: the answer from {gateway.url} broke off\n"


@pytest.mark.parametrize("clean", [True, False])
def test_parts_without_their_end_are_an_error(cli: Cli, gateway: Gateway, *, clean: bool) -> None:
    """The same for `run --stream`, also if it breaks off in the middle of a line."""

    def answer(exchange: Exchange) -> None:
        exchange.begin()
        exchange.line({"part": "one"})
        if clean:
            exchange.end()
        else:
            exchange.line(b'{"pa')

    gateway.on("POST /rpc", answer)
    ended = cli(*STREAM, "--gateway", gateway.url)
    assert (ended.status, ended.out) == (1, "one")
    assert ended.err.startswith("Error: ")
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("command", "line", "message"),
    [
        (CHAT, {"error": "the instance died"}, "the instance died"),
        (CHAT, {"error": {"message": "the instance died"}}, "the instance died"),
        (CHAT, {"error": 3}, "answered an error without words"),
        (STREAM, {"error": {"code": -32000, "message": "the instance died", "data": {}}}, "the instance died"),
        (STREAM, {"what": 1}, "answered neither a part nor an error"),
        (STREAM, b"<html>\n", "answered something that is not a JSON object"),
    ],
)
def test_errors_inside_a_stream(cli: Cli, gateway: Gateway, command: list[str], line: object, message: str) -> None:
    """After the parts that came before: the error, and the status 1."""

    def answer(exchange: Exchange) -> None:
        exchange.lines({**part("Hel"), "part": "Hel"}, line)

    gateway.on("POST /api/chat", answer)
    gateway.on("POST /rpc", answer)
    ended = cli(*command, "--gateway", gateway.url)
    assert ended.status == 1
    assert ended.out.rstrip() == "Hel"
    assert message in ended.err


def test_empty_lines_in_a_stream_mean_nothing(cli: Cli, gateway: Gateway) -> None:
    """They keep connections alive."""
    gateway.on("POST /rpc", lambda exchange: exchange.lines(b"\n", {"part": "one"}, b"\r\n", {"done": True}))
    assert cli(*STREAM, "--gateway", gateway.url).out == "one\n"


@pytest.mark.parametrize("command", [CHAT, STREAM])
def test_an_answer_is_read_to_its_end(cli: Cli, gateway: Gateway, command: list[str]) -> None:
    """Although its last part says that it is the last: who hangs up then looks like one who has stopped waiting."""
    left_early: list[bool] = []

    def answer(exchange: Exchange) -> None:
        exchange.begin()
        exchange.line({**part("Hel"), "part": "Hel"})
        exchange.line({**part("", done=True), "done": True} if command is CHAT else {"done": True})
        readable, _, _ = select.select([exchange.handler.connection], [], [], 0.2)
        left_early.append(bool(readable))
        exchange.end()

    gateway.on("POST /api/chat", answer)
    gateway.on("POST /rpc", answer)
    assert cli(*command, "--gateway", gateway.url).out.rstrip() == "Hel"
    assert left_early == [False]


# -- time and interruption


@pytest.mark.parametrize(("command", "begun"), [(CHAT, True), (RUN, False), (STREAM, True)])
def test_a_timeout_ends_the_waiting(cli: Cli, gateway: Gateway, command: list[str], *, begun: bool) -> None:
    """A gateway that says nothing is left after the time that was given, before its answer and within it."""
    left = threading.Event()

    def answer(exchange: Exchange) -> None:
        if begun:
            exchange.begin()
            exchange.line({**part("Hel"), "part": "Hel"})
        exchange.wait_until_closed()
        left.set()

    gateway.on("POST /api/chat", answer)
    gateway.on("POST /rpc", answer)
    ended = cli(*command, "--gateway", gateway.url, "--timeout", "0.05")
    assert ended.status == 1
    assert ended.err == f"Error: no answer from {gateway.url} within 0.05 s\n"
    assert left.wait(30)
    assert command is CHAT or gateway.seen[-1].body["timeout_s"] == 0.05


def test_a_stream_that_trickles_does_not_outlast_its_time(gateway: Gateway) -> None:
    """The time is that of the whole answer, not of each part."""

    def answer(exchange: Exchange) -> None:
        exchange.begin()
        while True:
            exchange.line({"part": "x"})

    gateway.on("POST /rpc", answer)
    with pytest.raises(GatewayError) as raised:
        for _ in GatewayClient(gateway.url).stream("a/b", {}, 0.01):
            pass
    assert raised.value.code == "timeout"


@pytest.mark.parametrize("timeout", ["0", "-1", "x"])
def test_a_timeout_that_is_none_is_refused(cli: Cli, timeout: str) -> None:
    """Called wrongly."""
    assert cli(*RUN, "--timeout", timeout).status == 2


@pytest.mark.parametrize("command", [CHAT, STREAM, RUN])
def test_ctrl_c_closes_the_connection(program: Program, gateway: Gateway, command: list[str]) -> None:
    """In the middle of an answer: the gateway sees it at once, the status is 130, and nothing is told."""
    left, begun = threading.Event(), threading.Event()

    def answer(exchange: Exchange) -> None:
        if command is not RUN:
            exchange.begin()
            exchange.line({**part("Hel"), "part": "Hel"})
        begun.set()
        exchange.wait_until_closed()
        left.set()

    gateway.on("POST /api/chat", answer)
    gateway.on("POST /rpc", answer)
    process = program(*command, "--gateway", gateway.url)
    assert begun.wait(30)
    if command is not RUN:
        assert process.stdout is not None
        assert process.stdout.read(3) == "Hel"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert (process.returncode, err) == (130, "\n")
    assert left.wait(30)


def test_a_reader_who_leaves_ends_the_stream(program: Program, gateway: Gateway) -> None:
    """As `head` does: the connection is closed, and nothing is told."""
    left, go_on = threading.Event(), threading.Event()

    def answer(exchange: Exchange) -> None:
        exchange.begin()
        exchange.line(part("Hel"))
        go_on.wait()
        exchange.line(part("lo"))
        exchange.wait_until_closed()
        left.set()

    gateway.on("POST /api/chat", answer)
    process = program(*CHAT, "--gateway", gateway.url)
    assert process.stdout is not None
    assert process.stdout.read(3) == "Hel"
    process.stdout.close()
    process.stdout = None
    go_on.set()
    _, err = process.communicate()
    assert (process.returncode, err) == (1, "")
    assert left.wait(30)


# -- the client alone


def test_leaving_a_stream_early_closes_its_connection(gateway: Gateway) -> None:
    """Closing the iterator is enough."""
    left = threading.Event()

    def answer(exchange: Exchange) -> None:
        exchange.begin()
        exchange.line({"part": 1})
        exchange.wait_until_closed()
        left.set()

    gateway.on("POST /rpc", answer)
    parts = GatewayClient(gateway.url).stream("a/b", {}, None)
    assert next(parts) == 1
    parts.close()
    assert left.wait(30)


def test_whether_anybody_listens(gateway: Gateway, free_port: int) -> None:
    """A connection is enough to know; nothing is asked."""
    assert GatewayClient(gateway.url).listening()
    assert not gateway.seen
    down = GatewayClient(f"http://127.0.0.1:{free_port}")
    assert not down.listening()
    with pytest.raises(GatewayDown):
        down.status()


def test_a_tls_gateway_that_does_not_speak_tls(cli: Cli, gateway: Gateway) -> None:
    """Is no gateway either, and the cause is told."""
    ended = cli("status", "--gateway", gateway.url.replace("http:", "https:"))
    assert ended.status == 1
    assert ended.err.startswith(f"Error: no gateway at https://127.0.0.1:{gateway.port}: ")


def test_a_gateway_over_ipv6(cli: Cli) -> None:
    """Brackets around its address stay."""
    if not socket.has_ipv6:
        pytest.fail("this machine has no IPv6 at all")
    ended = cli("status", "--gateway", "http://[::1]:1")
    assert ended.err.startswith("Error: no gateway at http://[::1]:1: ")


def test_parameters_are_sent_as_they_were_meant(cli: Cli, gateway: Gateway, tmp_path: Path) -> None:
    """JSON, YAML scalars, text, files and standard input."""
    gateway.on("POST /rpc", lambda exchange: exchange.json({"result": None}))
    (tmp_path / "text.txt").write_text("line 1\nline 2\n", encoding="utf-8")
    (tmp_path / "data.json").write_text('{"a": [1, null]}')
    given = {
        "n=3": 3,
        "x=1.5": 1.5,
        "t=true": True,
        "y=True": True,
        "no=no": "no",
        "nul=null": None,
        "void=": "",
        'quoted="3"': "3",
        "single='3'": "3",
        "text=Why: is the sky blue? #1": "Why: is the sky blue? #1",
        "eq=a=b": "a=b",
        "yaml=[a, {b: 1}]": ["a", {"b": 1}],
        'json=[{"role": "user", "content": "\\ud83d\\ude00"}]': [{"role": "user", "content": "😀"}],
        "time=12:30": "12:30",
        "nan=NaN": "NaN",
        "at='@here'": "@here",
        "file=@text.txt": "line 1\nline 2\n",
        "data=@data.json": {"a": [1, None]},
        "input=@-": "piped",
    }
    arguments = [item for text in given for item in ("--param", text)]
    assert cli(*RUN, "--gateway", gateway.url, *arguments, stdin="piped").status == 0
    assert gateway.seen[-1].body["params"] == {text.partition("=")[0]: value for text, value in given.items()}


def test_parameters_from_a_file(cli: Cli, gateway: Gateway, tmp_path: Path) -> None:
    """From a file or standard input; single ones go before."""
    gateway.on("POST /rpc", lambda exchange: exchange.json({"result": None}))
    (tmp_path / "params.json").write_text('{"a": 1, "b": 2}')
    command = [*RUN, "--gateway", gateway.url]
    assert cli(*command, "--params-file", "params.json", "-p", "b=3").status == 0
    assert gateway.seen[-1].body["params"] == {"a": 1, "b": 3}
    assert cli(*command, "--params-file", "-", stdin='{"c": 4}').status == 0
    assert gateway.seen[-1].body["params"] == {"c": 4}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--param", "novalue"], "--param 'novalue' is not of the form KEY=VALUE"),
        (["--param", "=3"], "--param '=3' is not of the form KEY=VALUE"),
        (["-p", "a=1", "-p", "a=2"], "--param a is given twice"),
        (["-p", "a=[1"], "--param a is neither JSON nor YAML: "),
        (["-p", "a={b: !c 1}"], "--param a is neither JSON nor YAML: tags"),
        (["-p", "a=.inf"], "--param a: .inf has no place in JSON"),
        (["-p", "a=@nope.txt"], "--param a: nope.txt: No such file or directory"),
        (["-p", "a=@home"], "--param a: home: Is a directory"),
        (["-p", "a=@bin"], "--param a: bin is not text in UTF-8"),
        (["-p", "a=@huge"], "--param a: huge is larger than 67108864 bytes"),
        (["-p", "a=@bad.json"], "--param a: bad.json is not JSON: "),
        (["--params-file", "bad.json"], "--params-file bad.json is not JSON: "),
        (["--params-file", "list.json"], "--params-file list.json: must be a JSON object"),
        (["--params-file", "-"], "--params-file - is not JSON: "),
        (["--params-file", "deep.json"], "--params-file deep.json is not JSON: "),
    ],
)
def test_parameters_that_cannot_be_read(cli: Cli, tmp_path: Path, arguments: list[str], message: str) -> None:
    """Nothing is sent; the parameter is named, and why; the status is 2."""
    (tmp_path / "bin").write_bytes(b"\xff\x00")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate((64 << 20) + 1)
    (tmp_path / "bad.json").write_text('{"a": NaN}')
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    ended = cli(*RUN, *arguments)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith(f"Error: {message}")


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
