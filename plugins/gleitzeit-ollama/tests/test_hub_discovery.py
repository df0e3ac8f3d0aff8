from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_ollama.addresses import GATEWAY_HEADER
from gleitzeit_ollama.testing import Garbage, Hang, OllamaServer, Status, Unauthorized

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    StartPool = Callable[..., Awaitable[Any]]

GATEWAY = Status(200, {"version": "0.24.0"}, {GATEWAY_HEADER: "1"})


@asynccontextmanager
async def _mute() -> AsyncIterator[int]:
    """A server that is not even HTTP: it says something else to everybody."""

    def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_it_finds_ollamas_only(pool: StartPool) -> None:
    """Of what listens on the ports, only Ollama servers are pooled: no web page, no gateway, nothing locked or mute."""
    async with (
        OllamaServer(models=["a"]) as one,
        OllamaServer(models=["b"]) as two,
        OllamaServer() as page,
        OllamaServer() as gateway,
        OllamaServer() as locked,
        OllamaServer() as silent,
        OllamaServer() as gone,
        _mute() as mail,
    ):
        page.script.always(Garbage(), on="any")
        gateway.script.always(GATEWAY, on="any")
        locked.script.always(Unauthorized(), on="any")
        silent.script.always(Hang(), on="any")
        await gone.stop()
        ports = [server.port for server in (one, two, page, gateway, locked, silent, gone)]
        pooled = await pool(discover=True, discover_ports=[*ports, mail], check_timeout_s=0.5)
        assert pooled.states() == {one.url: "ready", two.url: "ready"}
        assert (pooled.models(one.url), pooled.models(two.url)) == ({"model:a"}, {"model:b"})


async def test_a_gateway_is_known_by_any_of_its_answers(pool: StartPool) -> None:
    """Even when only one of three answers says so, a gateway is a gateway."""
    async with OllamaServer() as gateway:
        gateway.script.always(Status(200, {"models": []}, {GATEWAY_HEADER: "x"}), on="/api/ps")
        pooled = await pool(discover_ports=[gateway.port])
        assert pooled.states() == {}


async def test_a_found_server_that_becomes_a_gateway_is_down(pool: StartPool) -> None:
    """When a gateway takes over a port, what was pooled there is out at once: it would call itself."""
    async with OllamaServer() as server:
        pooled = await pool(discover_ports=[server.port])
        server.script.always(GATEWAY, on="any")
        assert "is a Gleitzeit gateway" in await pooled.check(server.url)
        assert pooled.states() == {server.url: "down"}


@pytest.mark.parametrize("form", ["http://127.0.0.1:{}", "127.0.0.1:{}", ":{}", "0.0.0.0:{}", "'localhost:{}'"])
async def test_it_looks_at_ollama_host(pool: StartPool, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """OLLAMA_HOST is looked at in every form that Ollama allows, besides the ports."""
    async with OllamaServer() as named, OllamaServer() as other:
        monkeypatch.setenv("OLLAMA_HOST", form.format(named.port))
        pooled = await pool(discover_ports=[other.port])
        assert sorted(report.instance.endpoint.rpartition(":")[2] for report in pooled.reports().values()) == sorted(
            [str(named.port), str(other.port)]
        )


async def test_ollama_host_that_leads_to_the_gateway_is_skipped(
    pool: StartPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users point OLLAMA_HOST at the gateway; the gateway, which sees it too, must not pool itself."""
    async with OllamaServer() as gateway:
        gateway.script.always(GATEWAY, on="any")
        monkeypatch.setenv("OLLAMA_HOST", gateway.url)
        pooled = await pool(discover_ports=[gateway.port])
        assert pooled.states() == {}


async def test_ollama_host_that_makes_no_sense_is_logged_and_ignored(
    pool: StartPool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A variable that names no server costs one warning, without its value; the ports are looked at all the same."""
    async with OllamaServer() as server:
        monkeypatch.setenv("OLLAMA_HOST", "http://me:sesame@gpu1")
        pooled = await pool(discover_ports=[server.port])
        assert pooled.states() == {server.url: "ready"}
        assert caplog.messages == [
            "OLLAMA_HOST is ignored: it must not hold a user or a password: a key goes into api_key or headers"
        ]


@pytest.mark.parametrize("name", ["localhost:{}", "127.0.0.1:{}", "0.0.0.0:{}", "[::1]:{}", "127.0.0.2:{}"])
async def test_a_configured_server_is_not_found_again(pool: StartPool, name: str) -> None:
    """However the configuration calls a server of this machine, it is pooled once, under that name."""
    async with OllamaServer() as server:
        pooled = await pool(instances=[name.format(server.port)], discover=True, discover_ports=[server.port])
        await pooled.hub.search()
        assert len(pooled.states()) == 1


async def test_names_of_this_machine_are_looked_up(pool: StartPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leads to loopback by look-up only is the same server as the loopback port."""
    async with OllamaServer() as server:
        monkeypatch.setenv("OLLAMA_HOST", f"localhost.:{server.port}")
        pooled = await pool(instances=[f"127.1:{server.port}"], discover=True, discover_ports=[server.port])
        assert list(pooled.states()) == [f"http://127.1:{server.port}"]


async def test_a_name_that_cannot_be_looked_up_disturbs_nothing(pool: StartPool) -> None:
    """A configured server with an unknown name is down; discovery goes on beside it."""
    async with OllamaServer() as server:
        unknown = f"http://no-such-host.invalid:{server.port}"
        pooled = await pool(instances=[unknown], discover=True, discover_ports=[server.port])
        assert pooled.states() == {unknown: "down", server.url: "ready"}


async def test_ipv6_loopback_is_looked_at(pool: StartPool) -> None:
    """A server that listens on ::1 only is found there."""
    async with OllamaServer(host="::1") as server:
        pooled = await pool(discover_ports=[server.port])
        assert pooled.states() == {f"http://[::1]:{server.port}": "ready"}


async def test_a_server_that_comes_later_is_found_later(pool: StartPool, caplog: pytest.LogCaptureFixture) -> None:
    """Discovery goes on; a new server is ready as soon as it is found, and found once."""
    caplog.set_level("INFO")
    async with OllamaServer(models=["late"]) as server:
        await server.stop()
        pooled = await pool(discover_ports=[server.port], discover_interval_s=0.02)
        assert pooled.states() == {}
        await server.start()
        await pooled.until(lambda: pooled.states() == {server.url: "ready"})
        assert pooled.models(server.url) == {"model:late"}
        await pooled.hub.search()
        assert caplog.messages.count(f"hub ollama: found an Ollama server at {server.url}") == 1


async def test_what_is_pooled_is_not_searched_again(pool: StartPool) -> None:
    """A search asks only places where nothing is known: servers that are pooled hear of checks alone."""
    async with OllamaServer() as server:
        pooled = await pool(discover_ports=[server.port])
        before = len(server.requests)
        await pooled.hub.search()
        assert len(server.requests) == before


async def test_without_discover_nothing_is_searched(pool: StartPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where servers are named, OLLAMA_HOST and the ports are left alone."""
    async with OllamaServer() as named, OllamaServer() as other:
        monkeypatch.setenv("OLLAMA_HOST", other.url)
        pooled = await pool(instances=[named.url], discover_ports=[other.port])
        assert pooled.states() == {named.url: "ready"}
        assert other.requests == []


async def test_nothing_found_is_no_error(pool: StartPool) -> None:
    """A machine without Ollama has a hub without instances, which fallbacks can then replace."""
    pooled = await pool(discover_ports=[1])
    assert pooled.states() == {}
    assert repr(pooled.hub) == "<OllamaHub ollama, 0 instances>"
