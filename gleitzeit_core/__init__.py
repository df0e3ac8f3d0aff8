"""Gleitzeit's core: resource hubs, providers, strategies and stores, and what runs them.

The names below are the public ones for programs that use Gleitzeit; plugins import from the modules directly.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gleitzeit_core.balancing import LoadBalancer  # noqa: F401 - for type checkers
    from gleitzeit_core.batch import BatchOutcome  # noqa: F401 - for type checkers
    from gleitzeit_core.breaker import CircuitBreaker  # noqa: F401 - for type checkers
    from gleitzeit_core.errors import (  # noqa: F401 - for type checkers
        CircuitOpen,
        GleitzeitError,
        InstanceFailure,
        LeaseExpired,
        RequestError,
    )
    from gleitzeit_core.events import Event  # noqa: F401 - for type checkers
    from gleitzeit_core.health import HealthMonitor  # noqa: F401 - for type checkers
    from gleitzeit_core.hub import HubOptions, ResourceHub  # noqa: F401 - for type checkers
    from gleitzeit_core.hub_provider import HubProvider, PoolOptions  # noqa: F401 - for type checkers
    from gleitzeit_core.leases import Lease  # noqa: F401 - for type checkers
    from gleitzeit_core.manager import ResourceManager  # noqa: F401 - for type checkers
    from gleitzeit_core.metrics import ResourceMetrics  # noqa: F401 - for type checkers
    from gleitzeit_core.persistence import HubPersistenceAdapter  # noqa: F401 - for type checkers
    from gleitzeit_core.provider import Provider  # noqa: F401 - for type checkers
    from gleitzeit_core.reload import Change, Changes  # noqa: F401 - for type checkers
    from gleitzeit_core.requests import Method, Request  # noqa: F401 - for type checkers
    from gleitzeit_core.reservations import Reservation  # noqa: F401 - for type checkers
    from gleitzeit_core.resources import Requirements, ResourceInstance  # noqa: F401 - for type checkers
    from gleitzeit_core.strategies.base import Filter, Strategy  # noqa: F401 - for type checkers

_HOME = {
    "BatchOutcome": "batch",
    "Change": "reload",
    "Changes": "reload",
    "CircuitBreaker": "breaker",
    "CircuitOpen": "errors",
    "Event": "events",
    "Filter": "strategies.base",
    "GleitzeitError": "errors",
    "HealthMonitor": "health",
    "HubOptions": "hub",
    "HubPersistenceAdapter": "persistence",
    "HubProvider": "hub_provider",
    "InstanceFailure": "errors",
    "Lease": "leases",
    "LeaseExpired": "errors",
    "LoadBalancer": "balancing",
    "Method": "requests",
    "PoolOptions": "hub_provider",
    "Provider": "provider",
    "Request": "requests",
    "RequestError": "errors",
    "Requirements": "resources",
    "Reservation": "reservations",
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
