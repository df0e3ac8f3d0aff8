"""Who may call: keys, and the Host and Origin headers that a web page cannot forge."""

from __future__ import annotations

import hmac
import ipaddress
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gleitzeit_gateway.options import GatewayOptions, KeyOptions

_LOCAL_SUFFIXES: Final = (".localhost", ".local", ".internal")
_LOCAL_ORIGINS: Final = frozenset(("localhost", "127.0.0.1", "0.0.0.0", "::1"))  # noqa: S104 - compared, not bound
_APP_SCHEMES: Final = frozenset(("app", "file", "tauri", "vscode-webview", "vscode-file"))
CORS_HEADERS: Final = (
    "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,X-Api-Key,X-Request-Id,OpenAI-Beta,"
    "x-stainless-arch,x-stainless-async,x-stainless-custom-poll-interval,x-stainless-helper-method,x-stainless-lang,"
    "x-stainless-os,x-stainless-package-version,x-stainless-poll-helper,x-stainless-retry-count,x-stainless-runtime,"
    "x-stainless-runtime-version,x-stainless-timeout"
)


class Access:
    """The gateway's doors.

    Args:
        options: Of the gateway.
    """

    def __init__(self, options: GatewayOptions) -> None:
        self._keys = [(key, key.key.get_secret_value().encode()) for key in options.keys]
        self._hosts = frozenset(host.lower() for host in (*options.allowed_hosts, options.host))
        self._origins = frozenset(origin.rstrip("/").lower() for origin in options.allowed_origins)

    @property
    def keys_needed(self) -> bool:
        """Whether callers need a key."""
        return bool(self._keys)

    def key_of(self, headers: Mapping[str, str]) -> KeyOptions | None:
        """The key that a request carries, as a bearer token or in ``X-Api-Key``; None for none or a wrong one."""
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("X-Api-Key", "")
        found = None
        # All are compared, each in constant time: how long it takes says nothing about any of them.
        for key, secret in self._keys:
            if hmac.compare_digest(given.encode("utf-8", "surrogateescape"), secret):
                found = key
        return found

    def host_allowed(self, host: str) -> bool:
        """Whether a Host header names this gateway: a web page that rebinds its own name to us does not.

        Addresses are fine, since a page cannot rebind one; so are ``localhost``, names that are local by their
        ending, and those configured.
        """
        name = _without_port(host).lower()
        if not name or name == "localhost" or name in self._hosts or name.endswith(_LOCAL_SUFFIXES):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return "*" in self._hosts
        return True

    def origin_allowed(self, origin: str) -> bool:
        """Whether a web page from `origin` may call."""
        if origin.rstrip("/").lower() in self._origins or "*" in self._origins:
            return True
        parts = urlsplit(origin)
        if parts.scheme in _APP_SCHEMES:
            return True
        return parts.scheme in ("http", "https") and parts.hostname in _LOCAL_ORIGINS


def cors(origin: str) -> dict[str, str]:
    """The headers that let a page from `origin` read an answer."""
    return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}


def preflight(origin: str) -> dict[str, str]:
    """The headers of an answer to a browser's question whether it may."""
    return {
        **cors(origin),
        "Access-Control-Allow-Methods": "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS",
        "Access-Control-Allow-Headers": CORS_HEADERS,
        "Access-Control-Max-Age": "43200",
    }


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0] if host.count(":") <= 1 else host
