"""Callers that come by https: certificates, renewed ones, wrong ones, and callers that must show one."""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import TYPE_CHECKING

import aiohttp
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from gleitzeit_core.cli.client import GatewayClient, GatewayError
from gleitzeit_core.errors import ConfigurationError
from gleitzeit_gateway.tls import Certificate, TlsOptions
from gleitzeit_ollama.remote import RemoteModels
from gleitzeit_ollama.where import Where

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from gleitzeit_gateway.testing import RunningGateway
    from gleitzeit_ollama.testing import OllamaServer

    Serve = Callable[..., Awaitable[RunningGateway]]


def trusting(file: Path) -> ssl.SSLContext:
    """A client's context that trusts the authorities in `file`."""
    return ssl.create_default_context(cafile=file)


def issued(authority: trustme.CA, file: Path, *names: str) -> Path:
    """A new certificate for `names` with its key in `file`."""
    leaf = authority.issue_cert(*names)
    new = file.with_suffix(".new")
    new.write_bytes(b"".join(part.bytes() for part in (leaf.private_key_pem, *leaf.cert_chain_pems)))
    new.replace(file)
    return file


async def version(gateway: RunningGateway, context: ssl.SSLContext) -> str:
    """What `/api/version` says to a caller of its own connection."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context, force_close=True)) as session,
        session.get(f"{gateway.url}/api/version") as response,
    ):
        return str((await response.json())["version"])


async def test_https(serve: Serve, ollama: OllamaServer, certificate: Path) -> None:
    """An answer in parts, and the command line's client."""
    gateway = await serve(ollama, tls={"certificate": str(certificate)})
    assert gateway.url.startswith("https://127.0.0.1:")
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "hi"}]}
    context = trusting(certificate)
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
        session.post(f"{gateway.url}/api/chat", json=body) as response,
    ):
        assert response.status == 200
        assert (await response.read()).splitlines()[-1].count(b'"done":true') == 1


async def test_the_command_line_comes_by_https(
    serve: Serve, ollama: OllamaServer, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It trusts what SSL_CERT_FILE names."""
    gateway = await serve(ollama, tls={"certificate": str(certificate)})
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    status = await asyncio.to_thread(GatewayClient(gateway.url).status)
    assert [one["endpoint"] for one in status["instances"]] == [ollama.url]


async def test_the_command_line_does_not_trust_the_certificate(
    serve: Serve, ollama: OllamaServer, certificate: Path
) -> None:
    """It says so, and what to do, not that there is no gateway."""
    gateway = await serve(ollama, tls={"certificate": str(certificate)})
    words = f"{gateway.url}: its certificate is not trusted: .*; SSL_CERT_FILE may name who signed it"
    with pytest.raises(GatewayError, match=words):
        await asyncio.to_thread(GatewayClient(gateway.url).status)
    with pytest.raises(GatewayError, match=words):
        await RemoteModels(gateway.url).ask("POST", "/api/show", {"model": "smollm2"}, Where())


async def test_who_does_not_speak_tls(
    serve: Serve, ollama: OllamaServer, certificate: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither plain HTTP nor garbage is answered, or told with a traceback; others are served."""
    gateway = await serve(ollama, tls={"certificate": str(certificate)})
    for sent in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x00\x00" + b"\x00" * 64):
        answered = await gateway.raw(sent)
        assert b"HTTP/1.1 200" not in answered
    assert await version(gateway, trusting(certificate))
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_caller_must_show_a_certificate(serve: Serve, ollama: OllamaServer, tmp_path: Path) -> None:
    """One that the configured authority has signed; without one, or with another's, nothing is answered."""
    ours, theirs = trustme.CA(), trustme.CA()
    server = issued(ours, tmp_path / "server.pem", "127.0.0.1")
    authority = tmp_path / "ca.pem"
    authority.write_bytes(ours.cert_pem.bytes())
    tls = {"certificate": str(server), "client_ca": str(authority)}
    gateway = await serve(ollama, tls=tls)
    context = trusting(authority)
    for file in (None, issued(theirs, tmp_path / "theirs.pem", "them")):
        if file is not None:
            context.load_cert_chain(file)
        with pytest.raises((aiohttp.ClientError, ssl.SSLError, ConnectionError)):
            await version(gateway, context)
    context.load_cert_chain(issued(ours, tmp_path / "client.pem", "us"))
    assert await version(gateway, context)


async def test_a_renewed_certificate_is_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New connections get it; one that is broken meanwhile changes nothing and is told; no password is asked for."""
    monkeypatch.setattr("gleitzeit_gateway.tls._LOOK_EVERY_S", 0.001)
    authority = trustme.CA()
    file = issued(authority, tmp_path / "server.pem", "first.example")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    certificate = await asyncio.to_thread(lambda: Certificate(TlsOptions(certificate=file)))

    async def shown(name: str) -> bool:
        """Whether a new connection is shown a certificate for `name`."""
        listener = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, **certificate.how)
        port = listener.sockets[0].getsockname()[1]
        try:
            async with asyncio.timeout(20):
                _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
            writer.close()
        except ssl.SSLCertVerificationError:
            return False
        finally:
            listener.close()
        return True

    watching = asyncio.create_task(certificate.watch())
    try:
        assert await shown("first.example")
        issued(authority, file, "second.example")
        async with asyncio.timeout(20):
            while "was renewed" not in caplog.text:
                await asyncio.sleep(0.001)
        assert await shown("second.example")
        assert not await shown("first.example")
        file.write_text("garbage")
        async with asyncio.timeout(20):
            while "stays as it was" not in caplog.text:
                await asyncio.sleep(0.001)
        assert await shown("second.example")
    finally:
        watching.cancel()


def test_what_is_wrong_is_told(tmp_path: Path) -> None:
    """Each mistake by its file, before anything starts."""
    authority = trustme.CA()
    one, other = issued(authority, tmp_path / "one.pem", "a"), tmp_path / "other.pem"
    other.write_bytes(authority.issue_cert("b").private_key_pem.bytes())
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    alone, broken, encrypted = (tmp_path / name for name in ("alone.pem", "broken.pem", "encrypted.pem"))
    alone.write_bytes(authority.cert_pem.bytes())
    broken.write_text("-----BEGIN CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\n")
    encrypted.write_bytes(
        load_pem_private_key(authority.issue_cert("c").private_key_pem.bytes(), None).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"a password")
        )
    )
    for tls, words in (
        ({"certificate": tmp_path / "none.pem"}, "no such file"),
        ({"certificate": one, "key_file": other}, "is not that of the certificate"),
        ({"certificate": garbage}, r"garbage\.pem has no certificate in it"),
        ({"certificate": garbage, "key_file": other}, r"garbage\.pem has no certificate in it"),
        ({"certificate": alone}, r"alone\.pem has no private key in it: name its file with 'key_file'"),
        ({"certificate": one, "key_file": garbage}, "has no private key in it: a PEM"),
        ({"certificate": one, "key_file": encrypted}, "the private key is encrypted"),
        ({"certificate": broken}, r"broken\.pem or its private key cannot be used"),
        ({"certificate": one, "client_ca": garbage}, r"'client_ca' .*garbage\.pem has no usable certificates"),
    ):
        with pytest.raises(ValueError, match=words):
            TlsOptions(**tls)


async def test_a_mistake_stops_the_start(serve: Serve, ollama: OllamaServer, tmp_path: Path) -> None:
    """With the option's place in the configuration."""
    with pytest.raises(ConfigurationError) as error:
        await serve(ollama, tls={"certificate": str(tmp_path / "none.pem")})
    assert "gateway.tls.certificate" in str(error.value)
