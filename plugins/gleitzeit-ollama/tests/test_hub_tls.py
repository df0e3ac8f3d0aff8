"""Ollama behind TLS, as a reverse proxy serves it."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from gleitzeit_core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    StartPool = Callable[..., Awaitable[Any]]

ANSWERS = {
    "/api/version": {"version": "0.24.0"},
    "/api/tags": {"models": [{"name": "tiny:latest", "model": "tiny:latest"}]},
    "/api/ps": {"models": []},
}


async def _answer(request: web.Request) -> web.Response:
    return web.json_response(ANSWERS[request.path])


@pytest.fixture
async def secure(certificate: Path) -> AsyncIterator[str]:
    """The URL of a server whose certificate nobody has signed."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    application = web.Application()
    application.router.add_get("/api/{name}", _answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        yield f"https://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_an_unknown_certificate_is_refused(pool: StartPool, secure: str) -> None:
    """By default only the system's authorities count: the server is down, and it is said why."""
    pooled = await pool(secure)
    report = pooled.reports()[secure]
    assert report.state == "down"
    assert "certificate" in report.reason


async def test_a_certificate_of_ones_own_is_accepted(pool: StartPool, secure: str, certificate: Path) -> None:
    """With `ca` the server's own authority counts, and only that one."""
    pooled = await pool(instances=[{"url": secure, "tls": {"ca": str(certificate)}}])
    assert pooled.states() == {secure: "ready"}
    assert pooled.models(secure) == {"model:tiny"}
    context = pooled.instance(secure).offers[0][1].tls
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.cert_store_stats()["x509_ca"] == 1


async def test_without_verification_any_certificate_is_accepted(pool: StartPool, secure: str) -> None:
    """`verify: false` is for tests, and does what it says."""
    pooled = await pool(instances=[{"url": secure, "tls": {"verify": False, "ca": None}}])
    assert pooled.states() == {secure: "ready"}


async def test_certificates_that_cannot_be_read_stop_the_hub(pool: StartPool, tmp_path: Path) -> None:
    """A file that holds no certificate is a mistake in the configuration, told with its path."""
    (tmp_path / "ca.pem").write_text("not a certificate")
    instance = {"url": "https://127.0.0.1:1", "tls": {"ca": str(tmp_path / "ca.pem")}}
    with pytest.raises(ConfigurationError, match=r"hubs\.ollama\.instances\[0\]\.tls\.ca: cannot be used: "):
        await pool(instances=[instance])
