"""Hooks of plugins for each other, and observers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gleitzeit_core.hookspecs import InstanceChange
from gleitzeit_core.plugins import PluginHost
from gleitzeit_core.requests import FinishedRequest, Request

from .records import record, write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

    Install = Callable[..., None]

CHANGE = InstanceChange(before=None, after=None, state="ready", reason="")
FINISHED = FinishedRequest(request=Request(method="light/on"), served=None, outcome=None, error_code="", total_s=0.0)


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
