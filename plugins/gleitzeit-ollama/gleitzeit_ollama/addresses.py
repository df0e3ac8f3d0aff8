"""Where Ollama servers are: URLs in one form, ``OLLAMA_HOST`` as Ollama itself reads it, the places worth a look.

Nothing here connects to anything, and nothing heavy is imported.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

DEFAULT_PORT: Final = 11434
DISCOVER_PORTS: Final = tuple(range(11434, 11440))
GATEWAY_HEADER: Final = "X-Gleitzeit-Gateway"
"""A Gleitzeit gateway sets it on every answer, so that no gateway takes another, or itself, for an Ollama server."""

_PORT_OF: Final = {"http": 80, "https": 443}
_MAX_PORT: Final = 65535
_NAME: Final = re.compile(r"\w(?:[\w.-]{0,251}[\w.])?")
_SPLIT: Final = re.compile(r"(?:\[(?P<v6>[^\[\]]*)\]|(?P<host>[^\[\]:]*)):(?P<port>[^\[\]:]*)")


def normalised(text: str) -> str:
    """The URL of a server in the one form that ids are made from: no trailing slash, no port that goes without saying.

    As in ``OLLAMA_HOST``, the scheme may be missing, and only then is the default port 11434. An unspecified address
    (``0.0.0.0``, ``[::]``) means loopback.

    Raises:
        ValueError: It is no such URL; says why, and never repeats a password.
    """
    scheme, authority, path = _parts(text)
    if scheme not in _PORT_OF:
        raise ValueError(f"must begin with http:// or https://, and not with {scheme[:20]}://")
    if path:
        raise ValueError("must end after host and port: no path, query or fragment")
    host, port = _host_and_port(authority, _default_port(scheme, text))
    if not host:
        raise ValueError("names no host")
    return joined(scheme, host, _checked_port(port))


def from_ollama_host(value: str) -> str:
    """The URL that Ollama's own programs would use for this value of ``OLLAMA_HOST``.

    Scheme, host and port are optional, a port that is no port counts as missing, and quotes and spaces around the value
    do not count. An empty host or an unspecified address, which tell a server to listen everywhere, mean loopback.

    Raises:
        ValueError: That URL leads to no HTTP server: another scheme, port 0, a query, a password inside.
    """
    text = value.strip().strip("\"'").strip()
    scheme, authority, path = _parts(text)
    if scheme not in _PORT_OF:
        raise ValueError(f"begins with {scheme[:20]}://, not with http:// or https://")
    if "?" in path or "#" in path:
        raise ValueError("has a query or a fragment")
    default = _default_port(scheme, text)
    host, port = _host_and_port(authority, default)
    number = int(port) if re.fullmatch(r"\+?[0-9]{1,9}", port) else default
    if number == 0:
        raise ValueError("names port 0, at which no server can be reached")
    base = joined(scheme, host or "127.0.0.1", number if number <= _MAX_PORT else default)
    return f"{base}/{path}".rstrip("/")


def candidates(ports: Iterable[int], ollama_host: str | None) -> tuple[str, ...]:
    """The URLs to look at on this machine, and the one of ``OLLAMA_HOST`` before them.

    Args:
        ports: Looked at on loopback.
        ollama_host: From `from_ollama_host`; None when the variable says nothing.
    """
    loopback = [joined("http", host, port) for port in ports for host in ("127.0.0.1", "::1")]
    return tuple(dict.fromkeys([*([ollama_host] if ollama_host else []), *loopback]))


def host_and_port(url: str) -> tuple[str, int]:
    """The host, without brackets, and the port of a URL from `normalised` or `from_ollama_host`."""
    scheme, authority, _ = _parts(url)
    host, port = _host_and_port(authority, _PORT_OF[scheme])
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether a host is certainly this machine: ``localhost`` or a loopback address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in ("localhost", "localhost.")


def without_aliases(url: str) -> str:
    """A URL with ``localhost`` for all the usual names of loopback, for telling whether two URLs mean one server."""
    scheme, authority, path = _parts(url)
    host, port = _host_and_port(authority, _PORT_OF[scheme])
    name = "localhost" if host in ("localhost", "127.0.0.1", "::1") else host
    return f"{scheme}://{name}:{port}/{path}"


def joined(scheme: str, host: str, port: int) -> str:
    """A URL of these parts, the port left out where the scheme says it.

    Raises:
        ValueError: `host` is neither an address nor a name.
    """
    shown = _canonical_host(host)
    return f"{scheme}://{shown}" if port == _PORT_OF[scheme] else f"{scheme}://{shown}:{port}"


def _parts(text: str) -> tuple[str, str, str]:
    """Scheme, authority, and what comes after it without slashes around."""
    scheme, separator, rest = text.strip().partition("://")
    if not separator:
        scheme, rest = "http", text.strip()
    found = re.search(r"[/?#]", rest)
    authority, path = (rest[: found.start()], rest[found.start() :]) if found else (rest, "")
    if "@" in authority:
        raise ValueError("must not hold a user or a password: a key goes into api_key or headers")
    return scheme.lower(), authority, path.strip("/")


def _default_port(scheme: str, text: str) -> int:
    return _PORT_OF[scheme] if "://" in text else DEFAULT_PORT


def _host_and_port(authority: str, default: int) -> tuple[str, str]:
    """Both as they stand there; a bare IPv6 address needs no brackets when no port follows."""
    found = _SPLIT.fullmatch(authority)
    if found is None:
        return authority.strip("[]"), str(default)
    host = found["host"] if found["v6"] is None else found["v6"]
    return host, found["port"]


def _checked_port(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= _MAX_PORT:
        raise ValueError(f"has a port that is not from 1 to {_MAX_PORT}")
    return int(text)


def _canonical_host(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        if not _NAME.fullmatch(host):
            raise ValueError("names a host that is neither an address nor a name") from None
        return host.lower()
    if address.is_unspecified:
        address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")  # noqa: PLR2004 - IPv4
    return address.compressed if address.version == 4 else f"[{address.compressed}]"  # noqa: PLR2004 - IPv4
