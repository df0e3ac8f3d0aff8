"""Configurations are checked with the good plugin installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gleitzeit_core.config import Configuration, check_configuration, read_configuration
from gleitzeit_core.errors import ConfigurationError
from gleitzeit_core.plugins import PluginHost

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Check = Callable[..., Configuration]


@pytest.fixture
def check(install: Callable[..., None], tmp_path: Path) -> Check:
    """Checks a configuration with the good plugin installed."""
    install("good")

    def check(text: str = "", **environ: str) -> Configuration:
        path = tmp_path / "c.yaml"
        path.write_text(text)
        raw = read_configuration(path, environ=environ)
        return check_configuration(raw, PluginHost.load(disabled=raw.plugins.disabled, files=raw.plugins.files))

    return check


@pytest.fixture
def problems(check: Check, tmp_path: Path) -> Callable[..., list[str]]:
    """The problems of a wrong configuration, as they are printed, with the file's name only."""

    def problems(text: str, **environ: str) -> list[str]:
        with pytest.raises(ConfigurationError) as caught:
            check(text, **environ)
        return [str(problem).replace(f"{tmp_path}/", "") for problem in caught.value.problems]

    return problems
