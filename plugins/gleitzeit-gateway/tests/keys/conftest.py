"""The clock that the limits of keys go by."""

from __future__ import annotations

import pytest

from .alice import Watch


@pytest.fixture
def watch() -> Watch:
    """A clock."""
    return Watch()
