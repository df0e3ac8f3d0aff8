"""The machine that the tests of admission use."""

from __future__ import annotations

import pytest

from gleitzeit_core.testing.machine import Machine


@pytest.fixture
def machine() -> Machine:
    """With at most three that wait for one capability."""
    return Machine(max_queue=3)
