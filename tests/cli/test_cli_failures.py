"""Gateways that are not there, are something else, break off or take too long: what commands say, and how they end."""

from __future__ import annotations

import select
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.cli.client import GatewayClient, GatewayError
from tests.cli.asking import CHAT, EVERY, RUN, STREAM, part
from tests.cli.samples import STATUS

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Ended, Exchange, Gateway

    Cli = Callable[..., Ended]
    Program = Callable[..., subprocess.Popen[str]]


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
