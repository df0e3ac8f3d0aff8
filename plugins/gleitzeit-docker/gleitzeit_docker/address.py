"""Where an engine is, and what its connections are encrypted with."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from docker.tls import TLSConfig

DEFAULT: Final = "unix:///var/run/docker.sock"
_SCHEMES: Final = ("unix", "tcp", "ssh")


@dataclass(frozen=True, slots=True)
class Tls:
    """Files in PEM format; see `gleitzeit_docker.options.EngineTls`."""

    ca: str = ""
    cert: str = ""
    key: str = ""
    verify: bool = True


@dataclass(frozen=True, slots=True)
class Address:
    """An engine's address.

    Args:
        url: ``unix:///var/run/docker.sock``, ``tcp://host:2376`` or ``ssh://user@host``.
        tls: For ``tcp``; None for none.
        published_at: The host at which the ports that its containers publish are reached; empty: nobody knows.
    """

    url: str = DEFAULT
    tls: Tls | None = None
    published_at: str = "127.0.0.1"

    @property
    def is_local(self) -> bool:
        """Whether the engine runs on this machine for certain."""
        return self.url.startswith("unix:")

    @property
    def is_by_ssh(self) -> bool:
        """Whether it is reached by the command ``ssh``."""
        return self.url.startswith("ssh:")

    @property
    def socket(self) -> str:
        """The path of its socket; empty when it has none here."""
        return urlsplit(self.url).path if self.is_local else ""

    def context(self) -> ssl.SSLContext | None:
        """What our own connections are encrypted with. Reads files."""
        if self.tls is None:
            return None
        context = ssl.create_default_context(cafile=self.tls.ca or None)
        if not self.tls.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.tls.cert:
            context.load_cert_chain(self.tls.cert, self.tls.key or None)
        return context

    def tls_for_sdk(self) -> TLSConfig | bool:
        """The same, as the SDK's client has it."""
        if self.tls is None:
            return False
        from docker.tls import TLSConfig  # noqa: PLC0415 - slow

        pair = (self.tls.cert, self.tls.key or self.tls.cert) if self.tls.cert else None
        return TLSConfig(client_cert=pair, ca_cert=self.tls.ca or None, verify=self.tls.verify)


def checked_url(url: str) -> str:
    """`url`, if it can be an engine's.

    Raises:
        ValueError: It cannot; and why.
    """
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES:
        raise ValueError(f"must begin with {', '.join(f'{scheme}://' for scheme in _SCHEMES)}")
    if (parts.scheme == "unix") != (not parts.netloc) or (parts.scheme == "unix" and not parts.path):
        raise ValueError("names no host" if parts.scheme != "unix" else "needs a path: unix:///var/run/docker.sock")
    if parts.port is None and parts.scheme == "tcp":
        raise ValueError("needs a port: 2376 with TLS as a rule, 2375 without")
    return url


def published_by(url: str) -> str:
    """Where the ports are that containers of this engine publish, as far as its URL says: on this machine, or empty."""
    return "127.0.0.1" if url.startswith("unix:") else ""


def from_environment() -> Address:
    """As Docker's own tools read ``DOCKER_HOST``, ``DOCKER_TLS_VERIFY`` and ``DOCKER_CERT_PATH``.

    Raises:
        ValueError: ``DOCKER_HOST`` is no engine's URL.
    """
    url = os.environ.get("DOCKER_HOST") or DEFAULT
    try:
        checked_url(url)
    except ValueError as error:
        raise ValueError(f"DOCKER_HOST, {url!r}: {error}") from None
    folder = os.environ.get("DOCKER_CERT_PATH", "")
    if not url.startswith("tcp:") or not (folder or os.environ.get("DOCKER_TLS_VERIFY")):
        return Address(url, published_at=published_by(url))
    certs = Path(folder).expanduser() if folder else Path.home() / ".docker"
    verify = bool(os.environ.get("DOCKER_TLS_VERIFY"))
    tls = Tls(str(certs / "ca.pem"), str(certs / "cert.pem"), str(certs / "key.pem"), verify)
    return Address(url, tls, published_by(url))
