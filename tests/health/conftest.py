"""The ward that the tests of health use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from .ward import Ward

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def ward() -> AsyncIterator[Ward]:
    """Closed at the end."""
    made = Ward()
    yield made
    await made.monitor.aclose()
