"""What the core's tests share: an environment in which only the core and chosen fake distributions are installed."""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

import importlib_metadata
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

FAKES = Path(__file__).parent / "fake_distributions"


class _Modules:
    """Finds what can be imported from a path, but none of the distributions there."""

    def __init__(self, path: list[str]) -> None:
        self.path = path

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """As the usual finder does for `sys.path`."""
        return PathFinder.find_spec(name, self.path if path is None else path, target)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Installs fake distributions by the name of their folder; nothing else but the core is installed."""
    before = set(sys.modules)
    core = tmp_path / "core" / "gleitzeit_core-0.1.0.dist-info"
    core.mkdir(parents=True)
    (core / "METADATA").write_text("Metadata-Version: 2.1\nName: gleitzeit-core\nVersion: 0.1.0\n")
    (core / "entry_points.txt").write_text("[gleitzeit]\ncore = gleitzeit_core.strategies.plugin\n")
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, _Modules(sys.path)])
    others = {str(found.locate_file("")) for found in importlib_metadata.distributions()}
    monkeypatch.setattr(sys, "path", [core.parent.as_posix(), *(p for p in sys.path if p not in others)])

    def install(*cases: str | Path) -> None:
        for case in cases:
            sys.path.insert(0, str(FAKES / case))
        importlib.invalidate_caches()

    yield install
    for name in set(sys.modules) - before:
        if name.startswith(("gz_", "a_gz", "gleitzeit_file_")):
            del sys.modules[name]
