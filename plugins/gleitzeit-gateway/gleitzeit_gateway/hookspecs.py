"""What other plugins can add to the gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gleitzeit_core.hookspecs import hookspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gleitzeit_gateway.endpoints import Endpoint


class GatewayHookSpecs:
    """Hooks of the gateway."""

    @hookspec
    def gleitzeit_gateway_endpoints(self) -> Sequence[Endpoint]:  # type: ignore[empty-body]
        """HTTP paths of the plugin's own, see `gleitzeit_gateway.endpoints.Endpoint`."""
