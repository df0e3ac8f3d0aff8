"""The figures in the documentation are those that the code gives."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.plugins import PluginHost

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[3]


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("strategies_benchmark", ROOT / "benchmarks/strategies.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look for their module there.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


BENCHMARK = _load()
PAGE = BENCHMARK.PAGE.read_text()
each_scenario = pytest.mark.parametrize("scenario", BENCHMARK.SCENARIOS, ids=lambda scenario: scenario.title)


def rows(text: str) -> list[list[str]]:
    """The cells of a table's rows, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@each_scenario
def test_the_table_is_current(scenario: Any) -> None:  # noqa: ANN401 - of a script
    """`python benchmarks/strategies.py --write` would change nothing."""
    assert BENCHMARK.table(scenario) in PAGE


@each_scenario
def test_every_request_ends_and_no_slot_is_left(scenario: Any) -> None:  # noqa: ANN401 - of a script
    """Whichever strategy is in charge, and whatever the servers do."""
    host = PluginHost.load()
    for named in scenario.rows.values():
        ended = BENCHMARK.Simulation(scenario, named, host, seed=7).run(200)
        assert len(ended.total_s) + ended.errors == 200
        assert ended.admission.pool.in_flight == 0
        assert ended.admission.waiting == 0


def test_every_strategy_has_a_row() -> None:
    """Those that pick; and the page names all of them."""
    shown = {row[0].split(",")[0] for row in rows(PAGE[PAGE.index(BENCHMARK.BEGIN) :])}
    ours = {kind.name for kind in PluginHost.load().strategies.values() if kind.target.startswith("gleitzeit_")}
    assert ours - shown == {"locality", "tagged"}
    assert all(f"`{name}`" in PAGE for name in ours)


@pytest.mark.parametrize(
    ("title", "winner", "percent"),
    [
        ("One is slow", "adaptive", 75),
        ("One is slow", "ewma", 85),
        ("Two models", "model_affinity", 10),
        ("Conversations", "consistent_hash", 95),
    ],
)
def test_what_is_made_for_something_is_better_at_it(title: str, winner: str, percent: int) -> None:
    """Than the default, at its 99th percentile, by a good deal."""
    section = PAGE[PAGE.index(f"### {title}") :].split("\n### ")[0]
    p99 = {row[0]: float(row[2]) for row in rows(section)}
    assert p99[winner] * 100 <= p99["least_loaded"] * percent


def test_what_fails_fast_does_not_attract_those_that_measure() -> None:
    """They send it less than its share, those that do not measure as much or more."""
    section = PAGE[PAGE.index("### One fails fast") :].split("\n### ")[0]
    errors = {row[0]: float(row[5].rstrip("%")) for row in rows(section)}
    assert (
        max(errors["ewma"], errors["adaptive"], errors["model_affinity"])
        < 4
        < min(errors["least_loaded"], errors["random"])
    )


def test_more_models_than_instances_are_served_in_turns() -> None:
    """Six models in demand on four servers with memory for one each: those who wait do not undo each other's loads."""
    models = tuple((f"m{number}", 1 / 6, 8.0) for number in range(6))
    servers = [BENCHMARK.ServerKind()] * 4
    scenario = BENCHMARK.Scenario("six", "", servers, per_s=1.5, models=models)
    host, requests = PluginHost.load(), 600
    runs = {
        name: BENCHMARK.Simulation(scenario, {"name": name}, host).run(requests)
        for name in ("model_affinity", "least_loaded")
    }
    loads = {name: sum(server.loads for server in run.servers.values()) for name, run in runs.items()}
    worst = {name: max(run.total_s) for name, run in runs.items()}
    assert loads["model_affinity"] * 2 < loads["least_loaded"]
    assert worst["model_affinity"] * 3 < worst["least_loaded"]


def test_the_same_seed_gives_the_same_figures() -> None:
    """Nothing but the seed decides."""
    scenario = BENCHMARK.SCENARIOS[3]
    first, second = (BENCHMARK.table(scenario, 150) for _ in range(2))
    assert first == second


def test_a_table_is_written_between_its_marks() -> None:
    """The text around it stays."""
    page = f"before\n{BENCHMARK.BEGIN}\nold\n{BENCHMARK.END}\nafter\n"
    assert BENCHMARK.written(page, "new\n") == f"before\n{BENCHMARK.BEGIN}\n\nnew\n\n{BENCHMARK.END}\nafter\n"
