"""The documentation is held to the code: options and hooks stand in it, its examples run, its links lead somewhere."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.cli.app import OWN
from gleitzeit_core.config import RouteOptions
from gleitzeit_core.config_reading import PluginsSection
from gleitzeit_core.errors import InvalidRequest
from gleitzeit_core.hookspecs import HookSpecs
from gleitzeit_core.hub import HubOptions, ResourceHub
from gleitzeit_core.manager import ResourceManager
from gleitzeit_core.plugins import PluginHost
from gleitzeit_core.strategies.base import Strategy
from gleitzeit_ollama.testing import HangBeforeHeaders, OllamaServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import BaseModel

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/*.md"), *ROOT.glob("*/gleitzeit-*/README.md")]
)
CONFIGURATION = (ROOT / "docs/configuration.md").read_text()
AUTHORS = (ROOT / "docs/writing-a-plugin.md").read_text()


def options_of_hubs() -> list[tuple[str, str]]:
    """(hub type, option) for all that are installed, the common ones left out."""
    host = PluginHost.load()
    return [
        (kind.name, option)
        for kind in host.hubs.values()
        for option in host.load_options(kind).model_fields
        if option not in HubOptions.model_fields
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    """Every link to a file of this repository names one that is there."""
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("model", [HubOptions, RouteOptions, PluginsSection], ids=lambda model: model.__name__)
def test_options_of_the_core_are_documented(model: type[BaseModel]) -> None:
    """Each option of the core stands in the page about configuration."""
    for option in model.model_fields:
        assert f"`{option}`" in CONFIGURATION, option


def test_options_of_sections_and_providers_are_documented() -> None:
    """So does each option of a section or a provider that a plugin brings."""
    host = PluginHost.load()
    for kind in host.sections.values():
        for option in host.load_options(kind).model_fields:
            assert f"`{option}`" in CONFIGURATION, f"{kind.name}.{option}"
    for provider in host.providers.values():
        for option in host.load_options(provider).model_fields:
            assert f"`{provider.name}.{option}`" in CONFIGURATION


@pytest.mark.parametrize(("kind", "option"), options_of_hubs())
def test_options_of_a_hub_are_documented_in_its_readme(kind: str, option: str) -> None:
    """Each option of a hub type stands in the README of its plugin."""
    readme = next(ROOT.glob(f"*/gleitzeit-{kind}/README.md")).read_text()
    assert f"`{option}`" in readme


@pytest.mark.parametrize("hook", [name for name in vars(HookSpecs) if name.startswith("gleitzeit_")])
def test_hooks_are_documented(hook: str) -> None:
    """Each hook stands in the page for authors."""
    assert f"`{hook}`" in AUTHORS


@pytest.mark.parametrize("method", ["open", "discover", "check", "offer", "scale", "recycle", "retire", "close"])
def test_methods_of_a_hub_are_documented(method: str) -> None:
    """Each method an author of a hub may write stands there, and is one."""
    assert f"`{method}(" in AUTHORS
    assert hasattr(ResourceHub, method)


def test_methods_of_a_strategy_are_documented() -> None:
    """So do those of a strategy."""
    for method in ("pick", "started", "finished"):
        assert f"`{method}" in AUTHORS
        assert hasattr(Strategy, method)


def test_strategies_hubs_and_providers_stand_in_the_readme() -> None:
    """The tables of the README are complete."""
    host, readme = PluginHost.load(), (ROOT / "README.md").read_text()
    for name in (*host.hubs, *host.providers, *host.strategies):
        assert f"| `{name}`" in readme, name


def test_yaml_of_the_configuration_page_is_a_configuration(tmp_path: Path) -> None:
    """The long example is right, whole, once its plugin is there."""
    example = re.findall(r"```yaml\n(.*?)```", CONFIGURATION, re.DOTALL)[0]
    (tmp_path / "my_hub.py").write_text('"""Nothing."""\n')
    (tmp_path / "gleitzeit.yaml").write_text(example)
    manager = ResourceManager.from_config(tmp_path / "gleitzeit.yaml")
    assert set(manager.config.hubs) == {"lan"}


def test_library_example_of_the_readme_runs(tmp_path: Path) -> None:
    """The ten lines talk to a model, on a machine where nothing is configured."""
    code = re.findall(r"<!-- run: library -->\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OLLAMA_HOST": "127.0.0.1:9"},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert not done.stderr


@pytest.fixture
def example(tmp_path: Path) -> Callable[..., ResourceManager]:
    """Writes a configuration with one of the examples as its plugin; a manager for it."""

    def make(name: str, **sections: object) -> ResourceManager:
        shutil.copy(ROOT / "docs/examples" / f"{name}.py", tmp_path)
        found = {"plugins": {"files": [f"./{name}.py"]}, "hubs": {}, **sections}
        (tmp_path / "gleitzeit.yaml").write_text(json.dumps(found))
        return ResourceManager.from_config(tmp_path / "gleitzeit.yaml")

    return make


@pytest.mark.parametrize("path", sorted((ROOT / "docs/examples").glob("*.py")), ids=lambda path: path.name)
def test_every_example_is_linked(path: Path) -> None:
    """The page for authors leads to each, and each shows how to write it into a configuration."""
    assert f"(examples/{path.name})" in AUTHORS
    assert f"plugins: {{files: [./{path.name}]}}" in path.read_text()


@pytest.mark.parametrize(
    "name",
    [
        *("SupplyHub", "add_instance(settings)", "reconfigure(options)", "cost(request)", "usage(request, part)"),
        *("Filter", "Wait(again_s=", "on_reload", "filters=True"),
    ],
)
def test_what_authors_may_use_is_documented(name: str) -> None:
    """It stands in the page for authors, and an example uses it."""
    assert name in AUTHORS
    examples = [path.read_text() for path in (ROOT / "docs/examples").glob("*.py")]
    assert any(name.partition("(")[0] in text for text in examples)


async def test_example_hub_takes_instances_by_hand_and_other_options(
    example: Callable[..., ResourceManager], tmp_path: Path
) -> None:
    """An instance is added with its weight, wrong settings are refused; another file is read without a restart."""
    (tmp_path / "servers.txt").write_text("")
    (tmp_path / "others.txt").write_text("http://127.0.0.1:10\n")
    lab = {"type": "inventory", "file": str(tmp_path / "servers.txt"), "model": "tiny"}
    async with example("inventory_hub", hubs={"lab": lab}) as manager:
        added = await manager.add_instance({"url": "http://127.0.0.1:9/", "weight": 3}, hub="lab")
        assert (added.endpoint, added.weight) == ("http://127.0.0.1:9", 3)
        with pytest.raises(InvalidRequest, match="weight: must be above 0"):
            await manager.add_instance({"url": "http://127.0.0.1:9", "weight": 0}, hub="lab")
        example("inventory_hub", hubs={"lab": {**lab, "file": str(tmp_path / "others.txt")}})
        assert [(change.path, change.applied) for change in await manager.reload()] == [("hubs.lab.file", True)]
        endpoints = {report.instance.endpoint for report in manager.instances()}
        assert endpoints == {"http://127.0.0.1:9", "http://127.0.0.1:10"}
        example("inventory_hub", hubs={"lab": {**lab, "file": str(tmp_path / "others.txt"), "model": "big"}})
        assert [change.note for change in await manager.reload()] == ["needs a restart"]


async def test_example_supply_creates_and_destroys(example: Callable[..., ResourceManager]) -> None:
    """A process is started for the first request, serves it, is replaced when it dies, and goes with the hub."""
    command = [sys.executable, "-m", "gleitzeit_ollama.testing", "--models", "tiny", "--port", "{port}"]
    own = {"type": "server", "command": command, "model": "tiny", "max_total": 1}
    question = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
    async with asyncio.timeout(60), example("process_hub", hubs={"own": own}) as manager:
        assert not manager.instances()
        assert "hello" in (await manager.execute("llm/chat", question))["message"]["content"]
        first = manager.instances()[0].instance
        first.handle.kill()
        await first.handle.wait()
        await manager.dispatcher.shell.hubs["own"].check(first)
        assert "hello" in (await manager.execute("llm/chat", question))["message"]["content"]
        second = manager.instances()[0].instance
        assert second.id != first.id
    assert second.handle.returncode is not None


async def test_example_supply_tells_why_it_cannot(example: Callable[..., ResourceManager]) -> None:
    """A command that ends by itself is the hub's problem."""
    own = {"type": "server", "command": [sys.executable, "-c", ""], "model": "tiny", "min_total": 1}
    async with example("process_hub", hubs={"own": own}) as manager:
        (hub,) = manager.status()["hubs"]
        assert hub["state"] == "degraded"
        assert "it ended by itself" in hub["problem"]


async def test_example_strategies_watch_the_price(example: Callable[..., ResourceManager]) -> None:
    """What is too dear is left out; the cheapest is waited for, but not for ever; other options count at once."""
    question = {"model": "smollm2", "messages": [{"role": "user", "content": "hello"}]}
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(OllamaServer(models=["smollm2"])) for _ in range(3)]
        instances = [
            {"url": server.url, "tags": [f"price={price}"], "max_concurrent": 1}
            for price, server in enumerate(servers, 1)
        ]
        hubs = {"lan": {"type": "ollama", "discover": False, "instances": instances}}

        def configured(patience_s: float) -> ResourceManager:
            chain = [{"name": "affordable", "most": 2}, {"name": "cheapest", "patience_s": patience_s}]
            return example("prices", hubs=hubs, routes=[{"methods": ["*"], "strategy": chain}])

        manager = await stack.enter_async_context(configured(3600))
        held = [HangBeforeHeaders(), HangBeforeHeaders()]
        for server, hold in zip(servers, held, strict=False):
            server.script.next(hold)
        asked = [asyncio.create_task(manager.execute("llm/chat", question)) for _ in range(2)]
        await held[0].reached.wait()
        assert manager.status()["requests"]["waiting"] == 1  # for the cheapest, although the second is free
        configured(0.01)
        assert [change.applied for change in await manager.reload()] == [True]
        await held[1].reached.wait()
        asked.append(asyncio.create_task(manager.execute("llm/chat", question)))
        for hold in held:
            hold.released.set()
        await asyncio.gather(*asked)
        served = {one["endpoint"]: one["served"] for one in manager.status()["instances"]}
        assert (served[servers[2].url], sum(served.values())) == (0, 3)


async def test_example_section_is_reloaded(example: Callable[..., ResourceManager]) -> None:
    """Other words count at once, with a note; how often they are said needs a restart."""
    async with example("greeter") as manager:
        module: Any = next(record.module for record in manager.host.records if record.name == "greeter")
        greeter = module.Greeter(manager)
        example("greeter", greeter={"words": "good evening", "every_s": 2})
        assert [(change.path, change.applied, change.note) for change in await manager.reload()] == [
            ("greeter.words", True, "from the next greeting on"),
            ("greeter.every_s", False, "needs a restart"),
        ]
        assert (greeter.options.words, greeter.options.every_s) == ("good evening", 1.0)


def test_example_command_runs(example: Callable[..., ResourceManager], tmp_path: Path) -> None:
    """`gleitzeit greet` says its words, and others after SIGHUP."""
    example("greeter", greeter={"words": "good morning", "every_s": 0.01})
    command = [sys.executable, "-P", "-m", "gleitzeit_core.cli", "greet"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "good morning\n"
        example("greeter", greeter={"words": "good night", "every_s": 0.01})
        process.send_signal(signal.SIGHUP)
        assert "good night\n" in iter(process.stdout.readline, "")
        process.kill()


async def test_example_hub_finds_servers_as_they_are_listed(tmp_path: Path) -> None:
    """The hub of the page for authors publishes what its file lists, and knows which of them answer."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    up = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    down = "http://127.0.0.1:9"
    shutil.copy(ROOT / "docs/examples/inventory_hub.py", tmp_path)
    (tmp_path / "servers.txt").write_text(f"# ours\n{up}/\n\n{down}\n")
    (tmp_path / "gleitzeit.yaml").write_text(
        "plugins: {files: [./inventory_hub.py]}\n"
        f"hubs: {{lab: {{type: inventory, file: {tmp_path}/servers.txt, model: tiny}}}}\n"
    )
    async with server, ResourceManager.from_config(tmp_path / "gleitzeit.yaml") as manager:
        states = {report.instance.endpoint: str(report.state) for report in manager.instances()}
        assert states == {up: "ready", down: "down"}
        assert manager.instances()[0].instance.capabilities == {"model:tiny"}


async def test_example_provider_counts(tmp_path: Path) -> None:
    """The provider of the page for authors works, by name from a configuration."""
    shutil.copy(ROOT / "docs/examples/counter_provider.py", tmp_path)
    (tmp_path / "gleitzeit.yaml").write_text("plugins: {files: [./counter_provider.py]}\nhubs: {}\n")
    async with ResourceManager.from_config(tmp_path / "gleitzeit.yaml") as manager:
        assert await manager.execute("words/count", {"text": "a b c"}) == 3
        assert manager.metrics_report()["sum"]["input_tokens"] == 3
        processes = [report.instance.handle for report in manager.instances()]
    assert [process.returncode is not None for process in processes] == [True]


def test_commands_are_documented() -> None:
    """Each command of the program stands in the page about commands."""
    page = (ROOT / "docs/commands.md").read_text()
    for name in (*OWN, *{full.split()[0] for full in PluginHost.load().commands}):
        assert f"| `gleitzeit {name}`" in page, name


@pytest.mark.parametrize(
    "line", re.findall(r"^\$ gleitzeit (.*)$", (ROOT / "docs/commands.md").read_text(), re.MULTILINE)
)
def test_commands_of_the_page_are_understood(line: str) -> None:
    """Each command line of that page has options that exist: with ``--help`` at its end it explains itself."""
    done = subprocess.run(
        [sys.executable, "-m", "gleitzeit_core.cli", *shlex.split(line), "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


async def test_examples_of_the_library_page_run(tmp_path: Path) -> None:
    """All of them, one after the other, as parts of one program with a manager over a server."""
    page = (ROOT / "docs/library.md").read_text()
    blocks = re.findall(r"<!-- run -->\n```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == page.count("```python") - 1
    names: dict[str, Any] = {}
    exec("async def program(manager):\n" + textwrap.indent("\n".join(blocks), "    "), names)  # noqa: S102 - our own page
    async with OllamaServer(models=["smollm2"]) as server:
        hub = {"type": "ollama", "discover": False, "instances": [server.url]}
        (tmp_path / "gleitzeit.yaml").write_text(json.dumps({"hubs": {"lan": hub}}))
        async with ResourceManager.from_config(tmp_path / "gleitzeit.yaml") as manager:
            await names["program"](manager)
            assert [report.state for report in manager.instances()] == ["ready"]
