"""The machine that the tests of the pool use."""

from __future__ import annotations

import pytest

from gleitzeit_core.breaker import BreakerPolicy
from gleitzeit_core.testing.machine import Machine

STILL = BreakerPolicy(jitter=0.0)


@pytest.fixture
def machine() -> Machine:
    """Without jitter."""
    return Machine(policy=STILL)
