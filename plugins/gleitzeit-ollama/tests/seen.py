"""What a server was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gleitzeit_ollama.testing import OllamaServer


def pulled(server: OllamaServer) -> list[str]:
    """The models that it was to download, in order."""
    return [record.model for record in server.requests if record.path == "/api/pull"]
