"""What could be a plugin: entry points of installed distributions, and single files. Nothing is imported yet."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import importlib_metadata
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from gleitzeit_core.hookspecs import GROUP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from gleitzeit_core.hookspecs import Descriptor

CORE = "gleitzeit-core"
Status = Literal["ok", "disabled", "failed", "incompatible", "conflict"]


@dataclass(slots=True, eq=False)
class PluginRecord:
    """One plugin, and what became of it. Filled in while plugins are loaded, and never changed afterwards.

    Args:
        name: The entry point's name, or a file's without its suffix.
        distribution: The normalised name of who brings it; ``file`` for a single file.
        version: The distribution's; empty for a file.
        source: The entry point's value, or the file's path.
        load: Imports it and returns the object with its hooks; may raise anything.
        requires: The distribution's requirements (``Requires-Dist``).
        module: What `load` returned; None before.
        status: ``ok``; ``disabled`` by the configuration; ``failed``; ``incompatible`` with this
            core; ``conflict``: a name it brings is taken, and it brings only the rest.
        reason: Why it is not ``ok``, for a person; empty when it is.
        provides: What it brings.
    """

    name: str
    distribution: str
    version: str
    source: str
    load: Callable[[], object] = field(repr=False)
    requires: tuple[str, ...] = ()
    module: object = None
    status: Status = "ok"
    reason: str = ""
    provides: tuple[Descriptor, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution} {self.version or self.source})"


def installed_plugins() -> list[PluginRecord]:
    """Those with an entry point, by (distribution, name), the core's own first.

    A distribution that is on ``sys.path`` more than once counts once, as the one that Python would import.
    """
    found: dict[str, list[PluginRecord]] = {}
    for distribution in importlib_metadata.distributions():
        if plugins := _plugins_of(distribution):
            found.setdefault(plugins[0].distribution, plugins)
    every = [plugin for plugins in found.values() for plugin in plugins]
    return sorted(every, key=lambda p: (p.distribution != CORE, p.distribution, p.name))


def file_plugins(files: Iterable[Path]) -> list[PluginRecord]:
    """Single-file plugins, in the order given; a file given twice counts once."""
    paths = dict.fromkeys(path.absolute() for path in files)
    return [PluginRecord(p.stem, "file", "", str(p), partial(_import_file, p)) for p in paths]


def describe(error: BaseException) -> str:
    """Any exception in one line of at most 300 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def unmet_requirement(plugin: PluginRecord, version: str) -> str:
    """Why `plugin` cannot work with the core's `version`; empty when it can, or when there is no version."""
    for text in plugin.requires if version else ():
        with suppress(InvalidRequirement):  # what it wants of others is the installer's business
            it = Requirement(text)
            applies = canonicalize_name(it.name) == CORE and (not it.marker or it.marker.evaluate({"extra": ""}))
            if applies and not it.specifier.contains(version, prereleases=True):
                return f"needs {CORE}{it.specifier}, but {version} is installed"
    return ""


def _plugins_of(distribution: Any) -> list[PluginRecord]:  # noqa: ANN401 - its type changed between releases
    """The plugins of one distribution; one that cannot be loaded if its metadata are broken and mention our group."""
    try:
        if not (points := distribution.entry_points.select(group=GROUP)):
            return []
        name, requires = canonicalize_name(distribution.name), tuple(distribution.requires or ())
        return [PluginRecord(p.name, name, distribution.version, p.value, p.load, requires) for p in points]
    except Exception as error:  # noqa: BLE001 - anybody's metadata may be broken in any way
        refuse = partial(_refuse, f"unreadable metadata: {describe(error)}")
    with suppress(Exception):
        if f"[{GROUP}]" in (distribution.read_text("entry_points.txt") or ""):
            name = canonicalize_name(distribution.name)
            return [PluginRecord(name, name, "", "entry_points.txt", refuse)]
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
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
