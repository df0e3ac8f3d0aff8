"""What every hub that creates and every provider must do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gleitzeit_core.resources import ChannelKind, Requirements, Speaks
from gleitzeit_core.testing.conformance import ProviderConformance, SupplyConformance
from gleitzeit_process.hub import ProcessHub
from gleitzeit_process.options import ProcessOptions
from gleitzeit_python.provider import PythonProvider

if TYPE_CHECKING:
    from gleitzeit_core.hub import ResourceHub
    from gleitzeit_core.provider import Provider


class TestProcessHub(SupplyConformance):
    """One process, two at most."""

    requirements = Requirements(accepts=(Speaks("python-runner", ChannelKind.STREAM),))
    limit = 2

    async def make_hub(self) -> ResourceHub[Any]:
        """With an idle time that a test can wait for."""
        return ProcessHub(ProcessOptions(min_total=1, max_total=2, idle_ttl_s=0.2))


class TestPythonProvider(ProviderConformance):
    """Over two processes."""

    example = ("python/execute", {"code": "print(6*7)"})
    invalid = ("python/execute", {"code": 7})
    streams = True

    async def make_provider(self) -> Provider[Any]:
        """With a hub of its own."""
        return PythonProvider(hub=ProcessHub(ProcessOptions(max_total=2)))
