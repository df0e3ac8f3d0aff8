from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import PluginError, UnknownName
from gleitzeit_core.hookspecs import HubType, InstanceChange, SectionType
from gleitzeit_core.plugin_discovery import PluginRecord, unmet_requirement
from gleitzeit_core.plugins import WELL_KNOWN, PluginHost
from gleitzeit_core.requests import FinishedRequest, Request

if TYPE_CHECKING:
    from collections.abc import Callable

    Install = Callable[..., None]

FAKES = Path(__file__).parent / "fake_distributions"
ROOT = Path(__file__).parent.parent
CHANGE = InstanceChange(before=None, after=None, state="ready", reason="")
FINISHED = FinishedRequest(request=Request(method="light/on"), served=None, outcome=None, error_code="", total_s=0.0)

HUB = 'HubType(name="lamp", target="gz_x:Hub", options="gz_x:Options", summary="")'


def record(host: PluginHost, name: str) -> PluginRecord:
    """The one plugin of that name."""
    (found,) = [it for it in host.records if it.name == name]
    return found


def write(folder: Path, name: str, body: str) -> Path:
    """A single-file plugin."""
    path = folder / f"{name}.py"
    path.write_text(f"from gleitzeit_core.hookspecs import *\nfrom gleitzeit_core.hookspecs import hookimpl\n{body}")
    return path


# -- good ones


def test_a_good_plugin_brings_all_it_offers(install: Install) -> None:
    """Every kind of descriptor is found by its name, and the record names plugin, distribution and version."""
    install("good")
    host = PluginHost.load()
    one = record(host, "one")
    assert (one.status, one.reason, one.distribution, one.version) == ("ok", "", "gz-one", "1.0")
    assert [it.name for it in one.provides].count("lamp") == 1
    assert len(one.provides) == 7
    assert host.hub_type("lamp") is host.hubs["lamp"]
    assert host.provider_type("light") is host.providers["light"]
    assert host.strategy_type("brightest") is host.strategies["brightest"]
    assert host.store_type("drawer") is host.stores["drawer"]
    assert set(host.commands) == {"switch", "lamps list"}
    assert set(host.sections) == {"mains"}
    assert repr(host) == "<PluginHost 2 ok>"


def test_the_core_brings_its_strategies_and_store_through_the_same_door(install: Install) -> None:
    """Without any other plugin there are the core's strategies and the memory store, and no hubs."""
    install()
    host = PluginHost.load()
    assert [it.name for it in host.records] == ["core"]
    assert {"least_loaded", "round_robin", "random"} <= set(host.strategies)
    assert set(host.stores) == {"memory"}
    assert not host.hubs


def test_targets_are_imported_only_when_asked_for(install: Install) -> None:
    """Loading the host does not import what descriptors point at; `load_target` and `load_options` do."""
    install("good")
    host = PluginHost.load()
    assert "gz_one_parts" not in sys.modules
    assert host.load_target(host.hub_type("lamp")).__name__ == "LampHub"
    assert host.load_options(host.hub_type("lamp")).__name__ == "LampOptions"
    assert host.load_options(host.sections["mains"]).__name__ == "Mains"
    assert host.load_target(host.commands["switch"]) == "a command"


def test_plugins_stand_in_the_order_of_their_distributions_and_the_core_first(install: Install) -> None:
    """The order does not depend on that of `sys.path`."""
    install("good", "takes_core", "same_hub")
    names = [it.name for it in PluginHost.load().records]
    assert names == ["core", "greedy", "one", "two"]


def test_a_distribution_that_is_on_the_path_twice_is_one(install: Install, tmp_path: Path) -> None:
    """The second copy is neither a second plugin nor a conflict."""
    shutil.copytree(FAKES / "good", tmp_path / "copy")
    old, new = tmp_path / "copy" / "gz_one-1.0.dist-info", tmp_path / "copy" / "gz_one-0.9.dist-info"
    old.rename(new)
    (new / "METADATA").write_text((new / "METADATA").read_text().replace("1.0", "0.9"))
    install(tmp_path / "copy", "good")
    one = record(PluginHost.load(), "one")
    assert (one.status, one.version) == ("ok", "1.0")


def test_loading_the_host_imports_no_sdk() -> None:
    """With all that is installed here, no vendor's SDK nor HTTP library is imported by loading the host."""
    code = (
        "import json, sys; from gleitzeit_core.plugins import PluginHost; host = PluginHost.load(); "
        "heavy = {'docker', 'boto3', 'kubernetes', 'aiohttp', 'sqlalchemy', 'xllamacpp'} & set(sys.modules); "
        "print(json.dumps([sorted(heavy), [r.name for r in host.records]]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy, names = json.loads(done.stdout)
    assert heavy == []
    assert "core" in names


# -- broken ones


@pytest.mark.parametrize(
    ("case", "name", "status", "reason"),
    [
        ("broken", "broken", "failed", "ModuleNotFoundError: No module named 'gz_no_such_sdk'"),
        ("exits", "exits", "failed", "SystemExit: 3"),
        ("misspelt", "misspelt", "failed", "unknown hook 'gleitzeit_register_hub'; did you mean"),
        ("future", "future", "incompatible", "needs gleitzeit-core>=99, but 0.1.0 is installed"),
        ("garbled", "gz-garbled", "failed", "unreadable metadata"),
    ],
)
def test_a_broken_plugin_is_a_row_and_costs_nobody_else_anything(
    install: Install, case: str, name: str, status: str, reason: str
) -> None:
    """It has its status and the reason; the good plugin beside it has all its descriptors."""
    install("good", case)
    host = PluginHost.load()
    bad = record(host, name)
    assert bad.status == status
    assert reason in bad.reason
    assert bad.provides == ()
    assert len(record(host, "one").provides) == 7


def test_all_broken_plugins_at_once(install: Install) -> None:
    """Each has its own row, and the good one works."""
    install("good", "broken", "exits", "misspelt", "future", "garbled", "same_name", "same_hub", "takes_core")
    host = PluginHost.load()
    assert repr(host) == "<PluginHost 2 ok, 3 conflict, 4 failed, 1 incompatible>"
    assert host.load_target(host.hub_type("lamp")).__name__ == "LampHub"


def test_keyboard_interrupt_is_nobodys_to_swallow(install: Install, tmp_path: Path) -> None:
    """Ctrl-C while a plugin is imported ends the loading."""
    install()
    with pytest.raises(KeyboardInterrupt):
        PluginHost.load(files=[write(tmp_path, "slow", "raise KeyboardInterrupt")])


def test_requirements_count_as_pip_counts_them(install: Install) -> None:
    """Markers and extras that do not apply are passed over, and pre-releases are allowed."""
    install("marked")
    assert record(PluginHost.load(), "marked").status == "ok"


@pytest.mark.parametrize(
    ("requirement", "version", "unmet"),
    [
        ("gleitzeit-core>=0.1,<1", "0.2.0rc1", False),
        ("gleitzeit-core>=0.2", "0.2.0.dev1", True),
        ("gleitzeit-core>=99", "", False),
        ("gleitzeit-core @ file:///somewhere", "0.1", False),
        ("another>=99", "0.1", False),
    ],
)
def test_requirements_against_other_versions_of_the_core(requirement: str, version: str, *, unmet: bool) -> None:
    """A pre-release counts as what it is; a core that was never installed has no version to compare."""
    plugin = PluginRecord("x", "gz-x", "1.0", "gz_x", lambda: None, (requirement,))
    assert bool(unmet_requirement(plugin, version)) is unmet


def test_other_peoples_broken_metadata_is_no_plugin(install: Install) -> None:
    """A distribution that does not mention our group is passed over, however broken it is."""
    install("elsewhere")
    assert [it.name for it in PluginHost.load().records] == ["core"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("@hookimpl\nasync def gleitzeit_register_hubs(): return []", "plain, synchronous function"),
        ("@hookimpl\nasync def gleitzeit_request_finished(finished): ...", "plain, synchronous function"),
        ("@hookimpl(wrapper=True)\ndef gleitzeit_register_hubs(): return (yield)", "plain, synchronous function"),
        ("def gleitzeit_register_hubs(): return []", "gleitzeit_register_hubs is not marked with @hookimpl"),
        ("@hookimpl\ndef gleitzeit_register_hubs(config): return []", "config"),
        (f"@hookimpl\ndef gleitzeit_register_hubs(): return {HUB}", "returned HubType, not a list"),
        (f"@hookimpl\ndef gleitzeit_register_stores(): return [{HUB}]", "returned a HubType, not a StoreType"),
        ("@hookimpl\ndef gleitzeit_register_hubs(): return ['lamp']", "returned a str, not a HubType"),
        ("@hookimpl\ndef gleitzeit_register_hubs(): raise ValueError('oh\\nno')", "ValueError: oh no"),
        (f"@hookimpl\ndef gleitzeit_register_hubs(): return [{HUB.replace('lamp', 'Lamp!')}]", "'Lamp!'"),
        (f"@hookimpl\ndef gleitzeit_register_hubs(): return [{HUB.replace(chr(34) + 'lamp' + chr(34), '7')}]", "7"),
        (f"@hookimpl\ndef gleitzeit_register_hubs(): return [{HUB.replace('gz_x:Hub', 'gz_x.Hub')}]", "module:Name"),
        (
            f"@hookimpl\ndef gleitzeit_register_hubs(): return [{HUB.replace('gz_x:Options', '')}]",
            "options must be module:Name, not ''",
        ),
        (
            f"@hookimpl\ndef gleitzeit_register_hubs(): return [{HUB[:-1]}, auto_rank='1')]",
            "auto_rank must be int | None, not '1'",
        ),
        (f"@hookimpl\ndef gleitzeit_register_hubs(): return [{HUB[:-3]}[])]", "summary must be str, not []"),
        ("@hookimpl\ndef gleitzeit_register_hookspecs(): return ['gz_no_such:Specs']", "No module named 'gz_no_such'"),
        ("@hookimpl\ndef gleitzeit_register_hookspecs(): return ['nothing']", "not of the form module:Name"),
        (
            "@hookimpl\ndef gleitzeit_register_hookspecs(): return ['gleitzeit_core.hookspecs:HookSpecs']",
            "is taken or lacks the prefix",
        ),
        ("def broken(:", "SyntaxError"),
    ],
)
def test_a_wrong_plugin_says_what_is_wrong(install: Install, tmp_path: Path, body: str, reason: str) -> None:
    """Whatever it does wrong, the reason says it in one line, and nothing of it is kept."""
    install()
    host = PluginHost.load(files=[write(tmp_path, "wrong", body)])
    bad = record(host, "wrong")
    assert bad.status == "failed"
    assert reason in bad.reason
    assert "\n" not in bad.reason
    assert bad.provides == ()
    assert not host.hubs
    assert not host.observes_requests


# -- conflicts


def test_the_second_plugin_of_a_name_loses_it(install: Install) -> None:
    """It is not imported, and its reason names both providers with versions and says what to do."""
    install("good", "same_name")
    host = PluginHost.load()
    first, second = (it for it in host.records if it.name == "one")
    assert (first.distribution, first.status) == ("gz-one", "ok")
    assert (second.distribution, second.status) == ("gz-other", "conflict")
    assert "one (gz-one 1.0)" in second.reason
    assert "one (gz-other 1.0)" in second.reason
    assert "plugins: {disabled: [gz-other]}" in second.reason
    assert "gz_other" not in sys.modules


def test_a_conflict_of_plugin_names_is_settled_by_disabling_a_distribution(install: Install) -> None:
    """What the message says to do is enough."""
    install("good", "same_name")
    host = PluginHost.load(disabled=["gz-one"])
    assert [it.status for it in host.records if it.name == "one"] == ["disabled", "ok"]


def test_the_second_hub_type_of_a_name_loses_it_and_keeps_the_rest(install: Install) -> None:
    """The first by order has the name; both are named; the loser's other descriptors stay."""
    install("good", "same_hub")
    host = PluginHost.load()
    two = record(host, "two")
    assert two.status == "conflict"
    assert "hub type 'lamp'" in two.reason
    assert "one (gz-one 1.0), which keeps it" in two.reason
    assert "two (gz-two 1.0)" in two.reason
    assert "plugins: {disabled: [one]}" in two.reason
    assert [it.name for it in two.provides] == ["darkest"]
    assert host.hub_type("lamp").target == "gz_one_parts:LampHub"


def test_the_core_never_loses_a_name(install: Install) -> None:
    """Not to a distribution that comes before it in the alphabet; nor does it give its sections away."""
    install("takes_core")
    host = PluginHost.load()
    greedy = record(host, "greedy")
    assert greedy.status == "conflict"
    assert "strategy 'least_loaded'" in greedy.reason
    assert "section 'hubs' is the core's own" in greedy.reason
    assert host.strategy_type("least_loaded").target.startswith("gleitzeit_core.")
    assert not host.sections


def test_a_name_brought_twice_by_one_plugin(install: Install, tmp_path: Path) -> None:
    """The first is kept and the second reported."""
    install()
    host = PluginHost.load(
        files=[write(tmp_path, "twin", f"@hookimpl\ndef gleitzeit_register_hubs(): return [{HUB}, {HUB}]")]
    )
    assert record(host, "twin").status == "conflict"
    assert "brought twice" in record(host, "twin").reason
    assert set(host.hubs) == {"lamp"}


def test_one_module_is_one_plugin(install: Install, tmp_path: Path) -> None:
    """A second entry point for a module that is a plugin already is a conflict."""
    info = tmp_path / "alias" / "gz_zalias-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gz-zalias\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[gleitzeit]\nzalias = gz_one\n")
    install("good", tmp_path / "alias")
    host = PluginHost.load()
    assert record(host, "zalias").status == "conflict"
    assert record(host, "zalias").reason == "the same module as plugin 'one'"
    assert record(host, "one").status == "ok"


# -- disabled ones


def test_a_disabled_plugin_is_not_even_imported(install: Install) -> None:
    """By its name, or by that of its distribution."""
    install("blocked", "good")
    for name in ("blocked", "gz-blocked"):
        host = PluginHost.load(disabled=[name])
        assert record(host, "blocked").status == "disabled"
        assert record(host, "one").status == "ok"
        assert "gz_blocked" not in sys.modules


def test_a_disabled_name_that_nothing_has_is_a_warning(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    """With the nearest spelling; it stops nothing."""
    install("good")
    host = PluginHost.load(disabled=["onne"])
    assert host.unknown_disabled == ("onne",)
    host.warn()
    assert "'onne'" in caplog.text
    assert "did you mean 'one'?" in caplog.text


def test_every_broken_plugin_is_one_warning(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    """A good or disabled one is none."""
    install("good", "broken", "blocked", "same_hub")
    with caplog.at_level(logging.WARNING):
        PluginHost.load(disabled=["blocked"]).warn()
    messages = [it.getMessage() for it in caplog.records]
    assert len(messages) == 2
    assert messages[0].startswith("plugin broken (gz-broken 1.0) is failed: ModuleNotFoundError")
    assert messages[1].startswith("plugin two (gz-two 1.0) is conflict: ")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("broken", "broken is failed: ModuleNotFoundError"),
        ("blocked", "blocked is disabled: by plugins.disabled"),
        ("missing", "missing is not installed"),
    ],
)
def test_a_needed_plugin_that_is_not_well_stops_the_start(install: Install, name: str, reason: str) -> None:
    """With the reason; the others are as they were."""
    install("good", "broken", "blocked")
    with pytest.raises(PluginError, match=reason):
        PluginHost.load(disabled=["blocked"], needed=["one", name])


def test_needed_plugins_that_are_well_are_enough(install: Install) -> None:
    """A broken plugin that nobody needs does not matter; nor does another of the same name that lost it."""
    install("good", "broken", "same_name")
    PluginHost.load(needed=["one", "core"])


# -- single files


def test_a_single_file_is_a_plugin(install: Install, tmp_path: Path) -> None:
    """Its hub's target is in the same file; its record says where it is."""
    install()
    body = (
        "from pydantic import BaseModel\nclass Options(BaseModel): ...\nclass Hub: ...\n"
        "@hookimpl\ndef gleitzeit_register_hubs():\n"
        '    return [HubType(name="mine", target=f"{__name__}:Hub", options=f"{__name__}:Options", summary="")]\n'
    )
    path = write(tmp_path, "my-hub", body)
    host = PluginHost.load(files=[path, path])
    mine = record(host, "my-hub")
    assert (mine.status, mine.distribution, mine.version, mine.source) == ("ok", "file", "", str(path))
    assert host.load_target(host.hub_type("mine")).__name__ == "Hub"
    assert host.load_options(host.hub_type("mine")).__name__ == "Options"


def test_two_files_of_one_name_are_a_conflict(install: Install, tmp_path: Path) -> None:
    """The reason tells them apart by path."""
    install()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    files = [write(tmp_path / "a", "mine", ""), write(tmp_path / "b", "mine", "")]
    first, second = PluginHost.load(files=files).records[1:]
    assert (first.status, second.status) == ("ok", "conflict")
    assert str(files[0]) in second.reason
    assert str(files[1]) in second.reason


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("missing.py", None, "FileNotFoundError: no such file"),
        ("plugin.txt", "", "ImportError: not a Python file"),
        ("boom.py", "raise RuntimeError('boom')", "RuntimeError: boom"),
        ("quits.py", "raise SystemExit('bye')", "SystemExit: bye"),
        ("nul.py", "\0", "null bytes"),
    ],
)
def test_a_broken_file_is_a_row(install: Install, tmp_path: Path, name: str, content: str | None, reason: str) -> None:
    """It stays in no table and not in `sys.modules`, and the others are as they were."""
    install("good")
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    before = set(sys.modules)
    host = PluginHost.load(files=[path])
    assert host.records[-1].status == "failed"
    assert reason in host.records[-1].reason
    assert not [it for it in set(sys.modules) - before if it.startswith("gleitzeit_file_")]
    assert record(host, "one").status == "ok"


# -- unknown names


def test_an_unknown_name_answers_with_the_nearest(install: Install) -> None:
    """And with what is installed."""
    install("good")
    with pytest.raises(UnknownName) as caught:
        PluginHost.load().hub_type("lmap")
    assert caught.value.message == "unknown hub type 'lmap'; installed: lamp; did you mean 'lamp'?"


@pytest.mark.parametrize(("kind", "name"), sorted(WELL_KNOWN))
def test_a_well_known_name_answers_with_its_install_line(install: Install, kind: str, name: str) -> None:
    """The paths in it exist in this repository."""
    install()
    hint = PluginHost.load().hint(kind, name)
    assert hint.startswith(f"{name!r} comes with pip install ./")
    assert hint.endswith(" from a checkout of Gleitzeit")
    for folder in WELL_KNOWN[kind, name]:
        assert f" ./{folder}" in hint
        assert (ROOT / folder / "pyproject.toml").is_file()


def test_a_misspelt_well_known_name_answers_with_its_install_line(install: Install) -> None:
    """As if it had been spelt right."""
    install()
    with pytest.raises(UnknownName, match=r"'ollama' comes with pip install \./plugins/gleitzeit-ollama"):
        PluginHost.load().hub_type("olama")


@pytest.mark.parametrize("name", ["broken", "future"])
def test_an_unknown_name_that_a_broken_plugin_is_likely_to_have_says_so(install: Install, name: str) -> None:
    """With the reason why that plugin is not there."""
    install("broken", "future")
    host = PluginHost.load()
    with pytest.raises(UnknownName) as caught:
        host.strategy_type(name)
    assert record(host, name).reason in caught.value.hint


def test_an_unknown_name_that_a_disabled_plugin_has_says_so(install: Install) -> None:
    """The well-known plugin is recognised by its distribution."""
    install("blocked")
    with pytest.raises(UnknownName, match=r"plugin blocked .* is disabled: by plugins.disabled"):
        PluginHost.load(disabled=["blocked"]).provider_type("blocked")


def test_an_unknown_name_that_nobody_has_says_no_more_than_that(install: Install) -> None:
    """No hint is better than a wrong one."""
    install()
    with pytest.raises(UnknownName) as caught:
        PluginHost.load().store_type("zzz")
    assert caught.value.hint == ""


@pytest.mark.parametrize(
    ("target", "options", "reason"),
    [
        ("gz_none:Hub", "gz_none:Options", "ModuleNotFoundError: No module named 'gz_none'"),
        ("gz_one_parts:Nothing", "gz_one_parts:Nothing", "AttributeError: module 'gz_one_parts' has no attribute"),
        ("gz_one_parts:switch", "gz_one_parts:LampHub", "TypeError: not a "),
        ("gz_exits:Hub", "gz_exits:Options", "SystemExit: 3"),
    ],
)
def test_a_target_that_cannot_be_used_names_plugin_target_and_cause(
    install: Install, tmp_path: Path, target: str, options: str, reason: str
) -> None:
    """So for options."""
    install("good", "exits")
    body = (
        "@hookimpl\ndef gleitzeit_register_hubs():\n"
        f'    return [HubType(name="odd", target="{target}", options="{options}", summary="")]'
    )
    host = PluginHost.load(files=[write(tmp_path, "odd", body)])
    for load, text in ((host.load_target, target), (host.load_options, options)):
        with pytest.raises(PluginError) as caught:
            load(host.hub_type("odd"))
        assert caught.value.message.startswith("plugin odd (file ")
        assert f"hub type 'odd': {text}: {reason}" in caught.value.message


def test_a_descriptor_from_elsewhere_is_refused_all_the_same() -> None:
    """The host may be asked for one that no plugin brought."""
    host = PluginHost.load()
    with pytest.raises(PluginError, match="No module named 'gz_none'"):
        host.load_target(HubType(name="x", target="gz_none:X", options="gz_none:X", summary=""))
    with pytest.raises(PluginError, match="not of the form module:Name"):
        host.load_options(SectionType(name="x", options="nothing", summary=""))


# -- hooks


def test_plugins_implement_each_others_hooks_whatever_their_order(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    """One that raises is logged and left out."""
    install("specs")
    host = PluginHost.load()
    assert {it.status for it in host.records} == {"ok"}
    assert host.call("gleitzeit_pots", litres=2, colour="blue") == ["a pot of 2 l"]
    assert "plugin shards failed in gleitzeit_pots" in caplog.text


def test_a_hook_whose_plugin_is_disabled_is_unknown(install: Install) -> None:
    """Those that implement it say so, and calling it answers nothing."""
    install("specs")
    host = PluginHost.load(disabled=["specs"])
    assert record(host, "pots").status == "failed"
    assert "unknown hook 'gleitzeit_pots'" in record(host, "pots").reason
    assert "optionalhook" in record(host, "pots").reason
    assert host.call("gleitzeit_pots", litres=2, colour="blue") == []


def test_an_optional_hook_may_be_unknown(install: Install, tmp_path: Path) -> None:
    """So a plugin can serve another that need not be there."""
    install()
    body = "@hookimpl(optionalhook=True)\ndef gleitzeit_pots(litres): ..."
    assert record(PluginHost.load(files=[write(tmp_path, "maybe", body)]), "maybe").status == "ok"


def test_without_observers_nothing_is_observed(install: Install) -> None:
    """Telling nobody is no error."""
    install("good")
    host = PluginHost.load()
    assert not host.observes_requests
    host.request_finished(FINISHED)
    host.instance_changed(CHANGE)


def test_observers_are_told_and_one_that_raises_is_logged(
    install: Install, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither an exception nor `sys.exit` reaches who told them, and the next observer is told."""
    install()
    seen: list[Any] = []
    hooks = (
        "@hookimpl\ndef gleitzeit_request_finished(finished):\n    finished.request.params['seen'].append({0!r}){1}\n"
        "@hookimpl\ndef gleitzeit_instance_changed(change):\n    {2}\n"
    )
    files = [
        write(tmp_path, "a", hooks.format("a", "\n    raise ValueError('a is ill')", "raise SystemExit(1)")),
        write(tmp_path, "b", hooks.format("b", "", "...")),
        write(tmp_path, "c", hooks.format("c", "", "...").replace("@hookimpl", "@hookimpl(tryfirst=True)")),
    ]
    host = PluginHost.load(files=files)
    assert host.observes_requests
    request = Request(method="light/on", params={"seen": seen})
    host.request_finished(FinishedRequest(request=request, served=None, outcome=None, error_code="", total_s=0.0))
    assert seen == ["c", "a", "b"]
    host.instance_changed(CHANGE)
    assert [it.getMessage() for it in caplog.records] == [
        "plugin a failed in gleitzeit_request_finished",
        "plugin a failed in gleitzeit_instance_changed",
    ]
