"""Looks for Ollama servers: at ``OLLAMA_HOST`` and on this machine's loopback ports.

A server may be reached under many addresses: ``localhost``, ``127.0.0.1``, ``[::1]``, the machine's own name. It is
pooled once, under the first that answers. So two servers on one port of two addresses of this machine count as one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias

from gleitzeit_core.resources import ResourceInstance
from gleitzeit_ollama.addresses import candidates, from_ollama_host, host_and_port, is_loopback

if TYPE_CHECKING:
    from collections.abc import Iterable


logger = logging.getLogger(__name__)

Place: TypeAlias = tuple[str, int]
"""Where an address leads: an IP address, empty for this machine, and a port."""


def ollama_host() -> str | None:
    """The URL in ``OLLAMA_HOST``; None when it is not set, or leads to no server, which is logged."""
    value = os.environ.get("OLLAMA_HOST", "")
    if not value.strip():
        return None
    try:
        return from_ollama_host(value)
    except ValueError as error:
        logger.warning("OLLAMA_HOST is ignored: it %s", error)
        return None


Look: TypeAlias = Callable[[str], Awaitable[ResourceInstance | None]]
"""The instance at a URL, or None when no Ollama server is there. Never raises but when cancelled."""


class Discovery:
    """One search after another for servers that are not known yet.

    Args:
        ports: Looked at on loopback.
        look: What is there?
        resolve_timeout_s: A name that takes longer to look up counts as unknown.
    """

    def __init__(self, ports: Iterable[int], look: Look, *, resolve_timeout_s: float) -> None:
        self._urls = candidates(ports, ollama_host())
        self._ports = {host_and_port(url)[1] for url in self._urls}
        self._look = look
        self._resolve_timeout_s = resolve_timeout_s

    def __repr__(self) -> str:
        """How many places it looks at."""
        return f"<Discovery of {len(self._urls)} addresses>"

    async def search(self, known: Iterable[str]) -> list[ResourceInstance]:
        """The instances there are now, but for those that are where one of the URLs `known` leads."""
        relevant = [url for url in known if host_and_port(url)[1] in self._ports]
        taken = set(await asyncio.gather(*map(self._place, relevant)))
        by_place: dict[Place, list[str]] = {}
        for url, place in zip(self._urls, await asyncio.gather(*map(self._place, self._urls)), strict=True):
            if place not in taken:
                by_place.setdefault(place, []).append(url)
        found = await asyncio.gather(*map(self._first, by_place.values()))
        return [instance for instance in found if instance is not None]

    async def _first(self, urls: Iterable[str]) -> ResourceInstance | None:
        for url in urls:
            instance = await self._look(url)
            if instance is not None:
                return instance
        return None

    async def _place(self, url: str) -> Place:
        host, port = host_and_port(url)
        if is_loopback(host):
            return "", port
        addresses = await self._resolved(host, port)
        if any(is_own_address(address) for address in addresses):
            return "", port
        return min(addresses, default=host), port

    async def _resolved(self, host: str, port: int) -> list[str]:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._resolve_timeout_s):
                found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):  # a time-out is an OSError
            return []
        return [str(entry[4][0]) for entry in found]


def is_own_address(address: str) -> bool:
    """Whether an IP address is one of this machine's: the way to it begins where it ends. Sends nothing."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
            own: str = probe.getsockname()[0]
            return own == address
    except OSError:
        return False
