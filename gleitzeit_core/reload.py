"""Another configuration put in force while requests run: what differs, and what becomes of each difference."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final

from gleitzeit_core.assembly import make_hub, make_routes
from gleitzeit_core.config_reading import path_text
from gleitzeit_core.config_show import effective, shown_value
from gleitzeit_core.errors import GleitzeitError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from pydantic import BaseModel

    from gleitzeit_core.config import Configuration, HubSection
    from gleitzeit_core.config_reading import ConfigPath
    from gleitzeit_core.manager import ResourceManager
    from gleitzeit_core.routing import Route

logger = logging.getLogger(__name__)

RESTART: Final = "needs a restart"
# What runs on a hub that is gone from the configuration may take this long.
_GRACE_S: Final = 3600.0
_MISSING: Final = object()


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between two configurations. Values are plain data, with ``***`` for secrets.

    Args:
        path: Where, as written by a person: ``hubs.lan.instances[0].weight``.
        what: ``added``, ``removed`` or ``changed``.
        before: The value that was in force; None when added.
        after: The new value; None when removed.
        applied: Whether it is in force now.
        note: Why not, or what else is to be said; mostly empty.
    """

    path: str
    what: str
    before: Any
    after: Any
    applied: bool
    note: str


@dataclass(frozen=True, slots=True)
class Changes:
    """All differences, in the order of the configuration."""

    items: tuple[Change, ...]

    def __iter__(self) -> Iterator[Change]:
        """Each of them."""
        return iter(self.items)

    def __len__(self) -> int:
        """How many."""
        return len(self.items)

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {"changes": [asdict(change) for change in self.items]}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one part of a configuration; see `Change`."""

    applied: bool
    note: str = ""


@dataclass(frozen=True, slots=True)
class Reloader:
    """Puts new options of a plugin's section in force.

    Args:
        callback: Gets them; returns a note for people, mostly empty.
        fixed: Names of options that it cannot change: they stay as they were.
    """

    callback: Callable[[Any], str]
    fixed: frozenset[str]


_NOT_NOW: Final = Verdict(applied=False, note=RESTART)
_DONE: Final = Verdict(applied=True)


async def prepare(manager: ResourceManager, config: Configuration) -> list[Route]:
    """Import what `config` names, before anything is changed; the routes. `PluginError` if something cannot be used."""
    for section in config.hubs.values():
        await asyncio.to_thread(manager.host.load_target, section.type)
    return await make_routes(manager.host, config.routes)


async def reload(
    manager: ResourceManager, config: Configuration, routes: list[Route], *, dry_run: bool = False
) -> Changes:
    """Put `config` in force as far as that goes; the manager's own configuration says then what is.

    Args:
        manager: Whose.
        config: Checked against the same plugins.
        routes: Its routes, from `prepare`.
        dry_run: Only say what would change.
    """
    work = _Reload(manager, config, routes)
    work.foretell()
    if not dry_run:
        await work.apply()
    return work.changes(dry_run=dry_run)


class _Reload:
    """One reload; see `reload`."""

    def __init__(self, manager: ResourceManager, config: Configuration, routes: list[Route]) -> None:
        self._manager, self._shell, self._routes = manager, manager.dispatcher.shell, routes
        self._old, self._new = manager.config, config
        before, after = effective(self._old), effective(config)
        self._differences = tuple(differences(before, after))
        # What becomes of each part that differs; a part is a section, a hub or an option.
        self._verdicts: dict[ConfigPath, Verdict] = {}

    def changes(self, *, dry_run: bool) -> Changes:
        """All differences, and what became of each; with `dry_run`, what can be foretold."""
        found = []
        for path, *values in self._differences:
            verdict = self._verdict(path) or _DONE
            what = "changed" if _MISSING not in values else "added" if values[0] is _MISSING else "removed"
            before, after = (None if value is _MISSING else shown_value(value, path) for value in values)
            applied = verdict.applied and not dry_run
            found.append(Change(path_text(path), what, before, after, applied=applied, note=verdict.note))
        return Changes(tuple(found))

    def foretell(self) -> None:
        """Note what needs a restart in any case."""
        for path, _, _ in self._differences:
            reloader = self._manager.reloaders.get(str(path[0]))
            if path[0] == "hubs":
                # Another type under the same name is another hub; and hubs that were found give way to none by name.
                fixed = path[2:] == ("type",) or self._old.explicit_hubs != self._new.explicit_hubs
            else:
                # Of other sections but the routes, what nobody reloads.
                fixed = path[0] != "routes" and (reloader is None or len(path) == 1 or path[1] in reloader.fixed)
            if fixed:
                self._verdicts[path[:2]] = _NOT_NOW

    async def apply(self) -> None:
        """Put in force what can be."""
        old, new = self._old.hubs, self._new.hubs
        for name in [name for name in new if self._open("hubs", name)]:
            await self._try(("hubs", name), self._change(new[name]) if name in old else self._add(new[name]))
        if self._open("routes"):
            await self._try(("routes",), self._set_routes())
        for name, reloader in self._manager.reloaders.items():
            if self._open(name):
                await self._try((name,), self._reload_section(name, reloader))
        for name in [name for name in old if name not in new and self._open("hubs", name)]:
            await self._try(("hubs", name), self._remove(name))
        self._manager.config = self._in_force()

    # -- parts -------------------------------------------------------------------------------------------------

    def _verdict(self, path: ConfigPath) -> Verdict | None:
        found = (self._verdicts.get(path[:length]) for length in (2, 1))
        return next((verdict for verdict in found if verdict is not None), None)

    def _open(self, *part: str) -> bool:
        """Whether anything in a part differs that may be put in force."""
        paths = [path for path, _, _ in self._differences if path[: len(part)] == part]
        return any(self._verdict(path) is None for path in paths)

    async def _try(self, part: ConfigPath, work: Coroutine[Any, Any, Verdict]) -> None:
        try:
            self._verdicts[part] = await work
        except GleitzeitError as error:
            self._verdicts[part] = Verdict(applied=False, note=f"failed: {error.message}")
        except Exception as error:
            logger.exception("reload: %s failed", path_text(part))
            self._verdicts[part] = Verdict(applied=False, note=f"failed: {type(error).__name__}: {error}")

    async def _add(self, section: HubSection) -> Verdict:
        if section.name in self._shell.hubs:
            return Verdict(applied=False, note="there is still a hub of that name")
        hub = await make_hub(self._manager.host, section.type, section.options, section.name)
        await self._manager.add_hub(hub)
        return _DONE

    async def _change(self, section: HubSection) -> Verdict:
        hub = self._shell.hubs.get(section.name)
        if hub is None:
            return Verdict(applied=False, note="the hub was removed")
        return _DONE if await hub.reconfigure(section.options) else _NOT_NOW

    async def _set_routes(self) -> Verdict:
        named = {name for route in self._routes for name in route.hubs or ()}
        if missing := named - self._shell.hubs.keys():
            return Verdict(applied=False, note=f"there is no hub {', '.join(sorted(missing))}")
        self._manager.dispatcher.set_routes(self._routes)
        return _DONE

    async def _reload_section(self, name: str, reloader: Reloader) -> Verdict:
        return Verdict(applied=True, note=reloader.callback(self._section(name)) or "")

    async def _remove(self, name: str) -> Verdict:
        # The routes of before may name it, and what should take its place may not be there: requests need somewhere.
        new = [("routes",), *(("hubs", other) for other in self._new.hubs if other not in self._old.hubs)]
        if not all(self._applied(*part) for part in new):
            return Verdict(applied=False, note="kept, as not all that is new is in force")
        if name in self._shell.hubs:
            self._shell.spawn(self._manager.remove_hub(name, grace_s=_GRACE_S))
        return Verdict(applied=True, note="once its work has ended")

    # -- what is in force --------------------------------------------------------------------------------------

    def _section(self, name: str) -> BaseModel:
        """The new options, but for those that are fixed."""
        old, new = self._old.sections[name], self._new.sections[name]
        fixed = self._manager.reloaders[name].fixed if name in self._manager.reloaders else ()
        return new.model_copy(update={option: getattr(old, option) for option in fixed})

    def _applied(self, *part: str) -> bool:
        """Whether a part is as in the new configuration."""
        verdict = self._verdict(part)
        return verdict is None or verdict.applied

    def _in_force(self) -> Configuration:
        names = [*self._new.hubs, *(name for name in self._old.hubs if name not in self._new.hubs)]
        hubs = {name: (self._new if self._applied("hubs", name) else self._old).hubs.get(name) for name in names}
        sections = {
            name: self._section(name) if name in self._manager.reloaders and self._applied(name) else options
            for name, options in self._old.sections.items()
        }
        return replace(
            self._old,
            hubs={name: section for name, section in hubs.items() if section is not None},
            routes=self._new.routes if self._applied("routes") else self._old.routes,
            sections=sections,
            source=self._new.source,
            raw=self._new.raw,
        )


def differences(before: Any, after: Any, path: ConfigPath = ()) -> Iterator[tuple[ConfigPath, Any, Any]]:  # noqa: ANN401 - plain data
    """(path, before, after) for each value that differs."""
    if before == after:
        return
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in {**before, **after}:
            yield from differences(before.get(key, _MISSING), after.get(key, _MISSING), (*path, key))
    elif isinstance(before, list) and isinstance(after, list):
        # What stands the same at both ends has not changed, although an entry between may have come or gone.
        shorter = min(len(before), len(after))
        head = next((n for n in range(shorter) if before[n] != after[n]), shorter)
        tail = next((n for n in range(shorter - head) if before[-1 - n] != after[-1 - n]), shorter - head)
        pairs = zip_longest(before[head : len(before) - tail], after[head : len(after) - tail], fillvalue=_MISSING)
        for number, (old, new) in enumerate(pairs, head):
            yield from differences(old, new, (*path, number))
    else:
        yield path, before, after
