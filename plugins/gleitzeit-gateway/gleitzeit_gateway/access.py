"""Who may call: keys, and the Host and Origin headers that a web page cannot forge."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from gleitzeit_gateway.callers import Caller
from gleitzeit_gateway.limits import Limits
from gleitzeit_gateway.options import is_loopback

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gleitzeit_gateway.call import Call
    from gleitzeit_gateway.options import GatewayOptions

_LOCAL_SUFFIXES: Final = (".localhost", ".local", ".internal")
_LOCAL_ORIGINS: Final = frozenset(("localhost", "127.0.0.1", "0.0.0.0", "::1"))  # noqa: S104 - compared, not bound
_APP_SCHEMES: Final = frozenset(("app", "file", "tauri", "vscode-webview", "vscode-file"))
CORS_HEADERS: Final = (
    "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,X-Api-Key,X-Request-Id,OpenAI-Beta,"
    "X-Gleitzeit-Affinity,X-Gleitzeit-Instances,"
    "x-stainless-arch,x-stainless-async,x-stainless-custom-poll-interval,x-stainless-helper-method,x-stainless-lang,"
    "x-stainless-os,x-stainless-package-version,x-stainless-poll-helper,x-stainless-retry-count,x-stainless-runtime,"
    "x-stainless-runtime-version,x-stainless-timeout,anthropic-version,anthropic-beta,"
    "anthropic-dangerous-direct-browser-access"
)


class Access:
    """The gateway's doors.

    Args:
        options: Of the gateway.
        limits: What keys have used so far; they are told of the keys there are now. None: nothing has been used.
    """

    def __init__(self, options: GatewayOptions, limits: Limits | None = None) -> None:
        limits = limits or Limits()
        limits.change(options.keys)
        self._keys = [
            (Caller(key, restricted=options.methods, limits=limits.of(key.name)), _digest(key.key.get_secret_value()))
            for key in options.keys
        ]
        self.anybody = Caller(restricted=options.methods)
        """Who calls where no key is needed."""
        self._hosts = frozenset(host.lower() for host in (*options.allowed_hosts, options.host, socket.gethostname()))
        self._origins = frozenset(origin.rstrip("/").lower() for origin in options.allowed_origins)
        # A page that rebinds its name to us has no key, so beyond loopback keys are enough, unless told otherwise.
        guarded = self.keys_needed and not options.allowed_hosts and not is_loopback(options.host)
        self._any_host = guarded or "*" in self._hosts

    def __repr__(self) -> str:
        """Counts, and never a key."""
        return f"<Access {len(self._keys)} keys, {'any host' if self._any_host else f'{len(self._hosts)} hosts'}>"

    @property
    def keys_needed(self) -> bool:
        """Whether callers need a key."""
        return bool(self._keys)

    def caller_of(self, headers: Mapping[str, str]) -> Caller | None:
        """Whose key a request carries, as a bearer token or in ``X-Api-Key``; None for none or a wrong one."""
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        given = _digest(token.strip() if scheme.lower() == "bearer" else headers.get("X-Api-Key", ""))
        found = None
        # Digests are of one length and all are compared, each in constant time: how long it takes says nothing.
        for caller, digest in self._keys:
            if hmac.compare_digest(given, digest):
                found = caller
        return found

    def host_allowed(self, host: str) -> bool:
        """Whether a Host header names this gateway: a web page that rebinds its own name to us does not.

        Addresses are fine, since a page cannot rebind one; so are ``localhost``, this machine's own name, names that
        are local by their ending, and those configured.
        """
        name = _without_port(host).lower()
        if self._any_host or not name or name == "localhost" or name in self._hosts or name.endswith(_LOCAL_SUFFIXES):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def origin_allowed(self, origin: str) -> bool:
        """Whether a web page from `origin` may call."""
        if origin.rstrip("/").lower() in self._origins or "*" in self._origins:
            return True
        try:
            parts = urlsplit(origin)
            local = parts.scheme in ("http", "https") and parts.hostname in _LOCAL_ORIGINS
        except ValueError:
            return False
        return local or parts.scheme in _APP_SCHEMES


def is_this_machine(address: str | None) -> bool:
    """Whether a connection comes from this machine: from loopback, also where IPv6 carries IPv4."""
    return is_loopback((address or "").removeprefix("::ffff:"))


def sees_all(call: Call) -> bool:
    """Whether a caller may see what others do: with an admin key, or on this machine where no keys are needed."""
    return call.admin or (not call.tenant and is_this_machine(call.request.remote))


def cors(origin: str) -> dict[str, str]:
    """The headers that let a page from `origin` read an answer."""
    return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}


def preflight() -> dict[str, str]:
    """The further headers of an answer to a browser's question whether it may."""
    return {
        "Access-Control-Allow-Methods": "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS",
        "Access-Control-Allow-Headers": CORS_HEADERS,
        "Access-Control-Max-Age": "43200",
    }


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0] if host.count(":") <= 1 else host
