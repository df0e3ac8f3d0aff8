"""What every hub, provider, strategy and store must do, as test classes to subclass.

    class TestMyHub(HubConformance):
        async def make_hub(self):
            return MyHub(MyOptions(...))

pytest (with pytest-asyncio in its automatic mode) runs the tests of the subclass. Flags say what a kind cannot do; the
tests for that do nothing then. A standard test may only be replaced by one that is marked as an expected failure, with
a reason: a test in each class looks for that.
"""

from __future__ import annotations

from gleitzeit_core.testing.conformance.base import Conformance, standard_tests
from gleitzeit_core.testing.conformance.hubs import HubConformance, SupplyConformance
from gleitzeit_core.testing.conformance.providers import ProviderConformance
from gleitzeit_core.testing.conformance.stores import StoreConformance
from gleitzeit_core.testing.conformance.strategies import StrategyConformance

__all__ = [
    "Conformance",
    "HubConformance",
    "ProviderConformance",
    "StoreConformance",
    "StrategyConformance",
    "SupplyConformance",
    "standard_tests",
]
