"""The protocol `llm` on Ollama servers, for programs that need nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gleitzeit_llm.provider import LLMProvider
from gleitzeit_ollama.hub import OllamaHub
from gleitzeit_ollama.options import checked_options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gleitzeit_core.hub import ResourceHub
    from gleitzeit_llm.options import LLMOptions


class OllamaProvider(LLMProvider):
    """Use it in an ``async with`` block. Alone, it finds the servers on this machine.

    Args:
        servers: URLs, or mappings as in ``instances`` of a configuration: ``{"url": ..., "api_key": ...}``.
        hub: Share this hub with other providers instead.
        options: Of the protocol.

    Raises:
        ConfigurationError: A server is not described rightly; lists everything that is wrong.
        ValueError: Both servers and a hub are given.
    """

    def __init__(
        self,
        *servers: str | Mapping[str, Any],
        hub: ResourceHub[Any] | None = None,
        options: LLMOptions | None = None,
    ) -> None:
        if servers and hub is not None:
            raise ValueError("give servers or a hub, not both")
        super().__init__(options, hub=hub)
        self._hub_options = checked_options({"instances": list(servers)})

    def make_hub(self) -> OllamaHub:
        """A hub of the servers given; one that discovers when none is."""
        return OllamaHub(self._hub_options)
