"""What could be a plugin: entry points of installed distributions, and single files.

Nothing is imported here; `FoundPlugin.load` does that.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import importlib_metadata
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from gleitzeit_core.hookspecs import GROUP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

CORE = "gleitzeit-core"
FILE = "file"
"""Stands for the distribution of a single-file plugin."""


@dataclass(frozen=True, slots=True)
class FoundPlugin:
    """Something that says it is a plugin.

    Args:
        name: The entry point's name, or the file's without its suffix.
        distribution: Its normalised name; ``file`` for a file.
        version: The distribution's; empty for a file.
        source: The entry point's value, or the file's path.
        load: Imports it and returns the object with its hooks; may raise anything.
        requires: The distribution's requirements (``Requires-Dist``).
    """

    name: str
    distribution: str
    version: str
    source: str
    load: Callable[[], object]
    requires: tuple[str, ...] = ()

    def __str__(self) -> str:
        """For messages: name, distribution and version."""
        return f"{self.name} ({self.distribution} {self.version or self.source})"


def installed_plugins() -> list[FoundPlugin]:
    """Those with an entry point, by (distribution, name), the core's own first.

    A distribution that is on ``sys.path`` more than once counts once, as the one that Python would import.
    """
    found: dict[str, list[FoundPlugin]] = {}
    for distribution in importlib_metadata.distributions():
        plugins = _plugins_of(distribution)
        if plugins:
            found.setdefault(plugins[0].distribution, plugins)
    every = [plugin for plugins in found.values() for plugin in plugins]
    return sorted(every, key=lambda p: (p.distribution != CORE, p.distribution, p.name))


def file_plugins(files: Iterable[Path]) -> list[FoundPlugin]:
    """Single-file plugins, in the order given; a file given twice counts once."""
    paths = dict.fromkeys(path.absolute() for path in files)
    return [FoundPlugin(p.stem, FILE, "", str(p), partial(_import_file, p)) for p in paths]


def describe(error: BaseException) -> str:
    """Any exception in one line of at most 300 characters; its name alone if even its text cannot be had."""
    with suppress(Exception):
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return type(error).__name__


def core_version() -> str:
    """The installed version of the core; empty when it runs without having been installed."""
    try:
        return importlib_metadata.version(CORE)
    except importlib_metadata.PackageNotFoundError:
        return ""


def unmet_requirement(plugin: FoundPlugin, version: str) -> str:
    """Why `plugin` cannot work with the core's `version`; empty when it can."""
    for text in plugin.requires if version else ():
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue  # what it wants of others is the installer's business
        if canonicalize_name(requirement.name) != CORE:
            continue
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            return f"needs {CORE}{requirement.specifier}, but {version} is installed"
    return ""


def _plugins_of(distribution: Any) -> list[FoundPlugin]:  # noqa: ANN401 - its type changed between releases
    """The plugins of one distribution, which may be broken in any way."""
    try:
        points = distribution.entry_points.select(group=GROUP)
        if not points:
            return []
        name, version = canonicalize_name(distribution.name), distribution.version
        requires = tuple(distribution.requires or ())
        return [FoundPlugin(p.name, name, version, p.value, p.load, requires) for p in points]
    except Exception as error:  # noqa: BLE001 - see above
        return _unreadable(distribution, f"unreadable metadata: {describe(error)}")


def _unreadable(distribution: Any, reason: str) -> list[FoundPlugin]:  # noqa: ANN401 - as above
    """A plugin that cannot be loaded, if the distribution mentions our group at all."""
    with suppress(Exception):
        if f"[{GROUP}]" in (distribution.read_text("entry_points.txt") or ""):
            name = canonicalize_name(distribution.name)
            return [FoundPlugin(name, name, "", "entry_points.txt", partial(_refuse, reason))]
    return []


def _refuse(reason: str) -> object:
    raise ImportError(reason)


def _import_file(path: Path) -> object:
    """Import a file under a name of its own, which `sys.modules` must know for import strings into it."""
    if not path.is_file():
        raise FileNotFoundError("no such file")
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    name = f"gleitzeit_file_{re.sub(r'[^0-9a-zA-Z]', '_', path.stem)}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
