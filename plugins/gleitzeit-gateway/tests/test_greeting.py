"""What is said at the start: right also when names are odd, and safe to paste."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

from gleitzeit_core.hub import HubOptions, ResourceHub
from gleitzeit_core.resources import HttpChannel, ResourceInstance
from gleitzeit_core.runs import InstanceReport
from gleitzeit_core.testing.workshop import Running, Workshop, WorkshopOptions
from gleitzeit_gateway.greeting import greeting
from gleitzeit_llm.models import capability, entry

if TYPE_CHECKING:
    from collections.abc import Sequence

URL = "http://127.0.0.1:8484"


def _report(*names: str, warm: str = "", embeds: str = "", state: str = "ready", reason: str = "") -> InstanceReport:
    entries = {name: entry(name) for name in names}
    if embeds:
        entries[embeds]["details"]["family"] = "nomic-bert"
    instance = ResourceInstance(
        id="one",
        hub="lan",
        kind="ollama",
        endpoint="http://gpu1:11434",
        offers=(("ollama", HttpChannel("http://gpu1:11434")),),
        capabilities=frozenset(map(capability, names)),
        warm=frozenset((capability(warm),)) if warm else frozenset(),
        details={"models": entries},
    )
    return InstanceReport(instance, state, 0, reason, limit=4, breaker="closed")


def _said(
    *reports: InstanceReport, hubs: Sequence[ResourceHub[Any]] = (), url: str = URL, keys_needed: bool = False
) -> list[str]:
    return greeting(url, reports, hubs, keys_needed=keys_needed).splitlines()


class Lan(ResourceHub[HubOptions]):
    """Finds what is there, and creates nothing."""

    kind = "lan"


def _workshop(problem: str = "") -> Workshop:
    hub = Workshop(WorkshopOptions())
    hub.problem = problem
    return hub


def _model_to_try(*reports: InstanceReport) -> str:
    arguments = [shlex.split(line) for line in _said(*reports)[-2:]]
    bodies = [json.loads(words[words.index("-d") + 1]) for words in arguments]
    assert bodies[0] == bodies[1]
    return str(bodies[0]["model"])


def test_model_to_try_is_one_to_chat_with() -> None:
    """A model that only embeds is tried last, one in memory first, else the first by name."""
    assert _model_to_try(_report("a", "b", "c", embeds="a")) == "b"
    assert _model_to_try(_report("a", "b", "c", warm="c")) == "c"
    assert _model_to_try(_report("a", "b", "c", warm="a", embeds="a")) == "b"
    assert _model_to_try(_report("a", embeds="a")) == "a"


def test_commands_are_safe_to_paste() -> None:
    """A model's name is its server's to choose; it stays a word for the shell, and one line for the terminal."""
    name = """x'; rm -rf ~; echo "$(id)" `id` \n\x1b[2J"""
    assert _model_to_try(_report(name)) == name
    said = _said(_report(name))
    assert len(said) == 7
    assert all(line.isprintable() for line in said)


def test_without_models() -> None:
    """What is down has no models to try; without anything at all it says what to do."""
    down = _said(_report("a", state="down", reason="refused"))
    assert down[2:] == ["  down          ollama    http://gpu1:11434 (refused)", "models: none yet"]
    assert _said()[2:] == [
        "  none yet: 'gleitzeit serve --instance URL', or a configuration from 'gleitzeit init'",
        "models: none yet",
    ]


def test_what_is_made_when_there_is_work() -> None:
    """A hub that has made nothing yet is named, with what hinders it; there is nothing to be added then."""
    assert _said(hubs=[_workshop(), _workshop("no wood")])[2:-1] == [
        "  on demand     workshop  hub workshop",
        "  degraded      workshop  hub workshop (no wood)",
    ]
    beside = _said(_report("a"), hubs=[Lan(HubOptions()), _workshop()])
    assert beside[2:4] == ["  ready         ollama    http://gpu1:11434", "  on demand     workshop  hub workshop"]


def test_hubs_that_find_nothing_need_servers() -> None:
    """Also beside one that makes its own."""
    hint = "  none yet: 'gleitzeit serve --instance URL', or a configuration from 'gleitzeit init'"
    assert _said(hubs=[Lan(HubOptions())])[2:-1] == [hint]
    assert _said(hubs=[_workshop(), Lan(HubOptions())])[2:-1] == ["  on demand     workshop  hub workshop", hint]


async def test_what_has_instances_is_not_named() -> None:
    """They are listed already."""
    on = Running(Workshop, min_total=1)
    await on.dispatcher.shell.add_hub(on.hub)
    said = _said(*on.dispatcher.reports(), hubs=[on.hub])
    await on.dispatcher.aclose()
    assert said[2:-1] == ["  ready         workshop  bench-1"]


def test_where_it_is_reached() -> None:
    """What listens everywhere is reached on loopback; a key is needed where keys are."""
    for listens, reached in (("http://0.0.0.0:1", "http://127.0.0.1:1"), ("http://[::]:1", "http://[::1]:1")):
        said = _said(_report("a"), url=listens, keys_needed=True)
        assert said[0] == f"Gleitzeit listens on {listens}"
        assert said[-2].startswith(f'  curl {reached}/api/chat -H "Authorization: Bearer $GLEITZEIT_KEY" -d ')
        assert said[-1].startswith(f"  curl {reached}/v1/chat/completions -H")


def test_of_many_instances_the_first_are_shown() -> None:
    """What to try stays on the screen, however many there are; 20 are all shown."""
    said = _said(*[_report("a")] * 998, _report(state="down"), _report(state="down"))
    assert len(said) == 27
    assert said[22] == "  and 980 more, 998 of all 1000 ready; 'gleitzeit instances' lists them"
    assert not any(" more, " in line for line in _said(*[_report("a")] * 20))
