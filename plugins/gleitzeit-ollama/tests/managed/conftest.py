"""Options of hubs that start stand-ins."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from .servers import STANDIN

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes see the modules that this one sees."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))


@pytest.fixture
def managed(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Options of a hub that starts stand-ins with one model, `tiny`."""

    def make(*arguments: str, **options: object) -> dict[str, Any]:
        return {
            "managed": {
                "command": [*STANDIN, "--models=tiny", *arguments],
                "log_dir": str(tmp_path / "state"),
                **options,
            }
        }

    return make
