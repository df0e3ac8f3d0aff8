"""Gleitzeit's core: resource hubs, providers, strategies and stores, and what runs them.

The names below are the public ones for programs that use Gleitzeit; plugins import from the modules directly.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gleitzeit_core.breaker import CircuitBreaker  # noqa: F401 - for type checkers
    from gleitzeit_core.errors import GleitzeitError, InstanceFailure, RequestError  # noqa: F401 - for type checkers
    from gleitzeit_core.health import HealthMonitor  # noqa: F401 - for type checkers
    from gleitzeit_core.hub import HubOptions, ResourceHub  # noqa: F401 - for type checkers
    from gleitzeit_core.hub_provider import HubProvider, PoolOptions  # noqa: F401 - for type checkers
    from gleitzeit_core.manager import ResourceManager  # noqa: F401 - for type checkers
    from gleitzeit_core.metrics import ResourceMetrics  # noqa: F401 - for type checkers
    from gleitzeit_core.persistence import HubPersistenceAdapter  # noqa: F401 - for type checkers
    from gleitzeit_core.provider import Provider  # noqa: F401 - for type checkers
    from gleitzeit_core.requests import Method, Request  # noqa: F401 - for type checkers
    from gleitzeit_core.resources import Requirements, ResourceInstance  # noqa: F401 - for type checkers
    from gleitzeit_core.routing import LoadBalancer  # noqa: F401 - for type checkers
    from gleitzeit_core.strategies.base import Strategy  # noqa: F401 - for type checkers

_HOME = {
    "CircuitBreaker": "breaker",
    "GleitzeitError": "errors",
    "HealthMonitor": "health",
    "HubOptions": "hub",
    "HubPersistenceAdapter": "persistence",
    "HubProvider": "hub_provider",
    "InstanceFailure": "errors",
    "LoadBalancer": "routing",
    "Method": "requests",
    "PoolOptions": "hub_provider",
    "Provider": "provider",
    "Request": "requests",
    "RequestError": "errors",
    "Requirements": "resources",
    "ResourceHub": "hub",
    "ResourceInstance": "resources",
    "ResourceManager": "manager",
    "ResourceMetrics": "metrics",
    "Strategy": "strategies.base",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    """Import a public name when it is first used, so that a light command stays light."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
