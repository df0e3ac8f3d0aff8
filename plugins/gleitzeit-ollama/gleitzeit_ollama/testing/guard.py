"""Who may call: `Host` on loopback, `Origin` everywhere, with the CORS headers for local pages."""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from gleitzeit_ollama.testing.answers import Plain

if TYPE_CHECKING:
    from collections.abc import Mapping

_FORBIDDEN = Plain(403)
_NO_CONTENT = Plain(204)
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "0.0.0.0")  # noqa: S104 - compared, never bound
_LOCAL_SUFFIXES = (".localhost", ".local", ".internal")
_APP_SCHEMES = ("app", "file", "tauri", "vscode-webview", "vscode-file")
_PREFLIGHT = {
    "Access-Control-Allow-Headers": "Authorization,Content-Type,User-Agent,Accept,X-Requested-With",
    "Access-Control-Allow-Methods": "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS",
    "Access-Control-Max-Age": "43200",
}


def refusal(method: str, headers: Mapping[str, str], *, on_loopback: bool) -> Plain | None:
    """Return the answer that stands before all others, or None where the request may go on.

    A foreign `Origin` or, on loopback, a foreign `Host` is 403 with an empty body. A preflight
    request is 204.

    Args:
        method: of the request.
        headers: of the request.
        on_loopback: the server listens on a loopback address only.
    """
    host, origin = headers.get("Host", ""), headers.get("Origin", "")
    if _is_cross_origin(origin, host):
        if not _is_local_origin(origin):
            return _FORBIDDEN
        if method == "OPTIONS":
            return Plain(204, headers=_PREFLIGHT)
    if not on_loopback or _is_local_address(_without_port(host)):
        return None
    if not _is_local_name(_without_port(host)):
        return _FORBIDDEN
    return _NO_CONTENT if method == "OPTIONS" else None


def cors_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers that let a page of a local origin read the answer."""
    host, origin = headers.get("Host", ""), headers.get("Origin", "")
    if not _is_cross_origin(origin, host) or not _is_local_origin(origin):
        return {}
    return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}


def _is_cross_origin(origin: str, host: str) -> bool:
    return bool(origin) and origin not in (f"http://{host}", f"https://{host}")


def _is_local_origin(origin: str) -> bool:
    try:
        parts = urlsplit(origin)
        local = parts.scheme in {"http", "https"} and parts.hostname in _LOCAL_HOSTS
    except ValueError:
        return False
    return local or parts.scheme in _APP_SCHEMES


def _without_port(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return host


def _is_local_address(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_private or address.is_unspecified


def _is_local_name(host: str) -> bool:
    names = ("", "localhost", socket.gethostname().lower())
    return host in names or host.endswith(_LOCAL_SUFFIXES)
