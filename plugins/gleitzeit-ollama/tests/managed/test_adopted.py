"""Servers that a killed owner has left behind: taken over where they are what was asked for, ended where not."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from gleitzeit_core.resources import Ownership

from .servers import gone, pid

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    StartPool = Callable[..., Awaitable[Any]]

OWNER = """
import asyncio, json, sys
from gleitzeit_core.cli import main
from gleitzeit_core.dispatch import Dispatcher
from gleitzeit_ollama.hub import OllamaHub
from gleitzeit_ollama.options import checked_options

async def main():
    hub = OllamaHub(checked_options(json.loads(sys.argv[1])))
    await Dispatcher().shell.add_hub(hub)
    print(*(instance.details["pid"] for instance in hub.instances), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def killed_owner(options: dict[str, Any]) -> list[int]:
    """Start servers in another process and kill that; the servers' process ids."""
    command = (sys.executable, "-P", "-c", OWNER, json.dumps(options))
    owner = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert owner.stdout is not None
    found = [int(word) for word in (await owner.stdout.readline()).split()]
    owner.kill()
    await owner.wait()
    return found


async def test_what_a_killed_owner_leaves_behind_is_taken_over(
    pool: StartPool, managed: Callable[..., dict[str, Any]]
) -> None:
    """The very same process serves on, adopted, and ends with its new owner."""
    (left,) = await killed_owner(managed())
    ended = gone(left)
    assert not ended()
    pooled = await pool(**managed())
    (instance,) = pooled.hub.instances
    assert (pid(instance), instance.ownership) == (left, Ownership.ADOPTED)
    assert pooled.states() == {instance.endpoint: "ready"}
    await pooled.dispatcher.aclose()
    assert ended()


async def test_an_adopted_server_that_dies_is_replaced(pool: StartPool, managed: Callable[..., dict[str, Any]]) -> None:
    """Its end is noticed although it is nobody's child here."""
    (left,) = await killed_owner(managed())
    pooled = await pool(**managed())
    os.kill(left, signal.SIGKILL)
    await pooled.until(lambda: [pid(i) for i in pooled.hub.instances if "pid" in i.details] not in ([], [left]))
    (instance,) = pooled.hub.instances
    assert instance.ownership is Ownership.MANAGED


async def test_what_would_be_started_differently_now_is_ended(
    pool: StartPool, managed: Callable[..., dict[str, Any]]
) -> None:
    """With another command or environment it is not what was asked for."""
    (left,) = await killed_owner(managed())
    ended = gone(left)
    pooled = await pool(**managed(environment={"OLLAMA_DEBUG": "1"}))
    (instance,) = pooled.hub.instances
    assert (instance.ownership, ended()) == (Ownership.MANAGED, True)


async def test_more_than_the_limit_are_not_taken_over(pool: StartPool, managed: Callable[..., dict[str, Any]]) -> None:
    """Those above it are ended."""
    left = await killed_owner(managed(min_total=2, max_total=2))
    pooled = await pool(**managed())
    (instance,) = pooled.hub.instances
    (other,) = [one for one in left if one != pid(instance)]
    assert gone(other)()


async def test_what_a_living_owner_has_is_left_alone(pool: StartPool, managed: Callable[..., dict[str, Any]]) -> None:
    """Two gateways with one configuration each have servers of their own."""
    first, second = await pool(**managed()), await pool(**managed())
    (one,), (other,) = first.hub.instances, second.hub.instances
    assert pid(one) != pid(other)
    assert other.ownership is Ownership.MANAGED
    ended = gone(pid(one))
    await second.dispatcher.aclose()
    assert not ended()


async def test_a_process_that_has_an_old_id_by_now_is_left_alone(
    pool: StartPool, managed: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Ids are given out again: one that was started at another time is somebody else's; a torn note says nothing."""
    stranger = await asyncio.create_subprocess_exec("sleep", "1000", start_new_session=True)
    try:
        (tmp_path / "state").mkdir()
        note = {"pid": stranger.pid, "started": "another boot 1", "port": 20112, "made": ""}
        (tmp_path / "state" / "ollama-20112.json").write_text(json.dumps(note))
        (tmp_path / "state" / "ollama-20113.json").write_text('{"pid": ')
        (tmp_path / "state" / "another-hub-20114.json").write_text(json.dumps(note))
        pooled = await pool(**managed())
        assert len(pooled.hub.instances) == 1
        assert stranger.returncode is None
        assert sorted(path.name for path in (tmp_path / "state").glob("*-2011*.json")) == ["another-hub-20114.json"]
    finally:
        stranger.kill()
        await stranger.wait()
