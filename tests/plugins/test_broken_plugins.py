"""Plugins that are not well: each is a row with its reason, and costs nobody else anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gleitzeit_core.plugin_discovery import PluginRecord, unmet_requirement
from gleitzeit_core.plugins import PluginHost

from .records import HUB, record, write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Install = Callable[..., None]


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
