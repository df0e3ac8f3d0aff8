"""Where commands look for the gateway, the key that they send, and the client behind them."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING

import pytest

from gleitzeit_core.cli.client import GatewayClient, GatewayDown
from gleitzeit_core.cli.connection import Connection
from gleitzeit_core.cli.context import Invocation
from tests.cli.asking import EVERY
from tests.cli.samples import STATUS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Ended, Exchange, Gateway

    Cli = Callable[..., Ended]


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
