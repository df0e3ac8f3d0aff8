"""Instances that hold models in memory, and requests for these models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gleitzeit_strategies.board import Board
from gleitzeit_strategies.model_affinity import ModelAffinity
from gleitzeit_strategies.options import ModelAffinityOptions
from gleitzeit_strategies.testing import Bench

if TYPE_CHECKING:
    from gleitzeit_core.pool import Record
    from gleitzeit_core.routing import Ticket

SIZES = {"a": 4e9, "b": 8e9, "c": 2e9}


def bench(**options: Any) -> Bench:  # noqa: ANN401 - any of them
    """Without instances."""
    return Bench(ModelAffinity, ModelAffinityOptions(**options), seed=1)


def put(machine: Bench, name: str, *warm: str, sizes: dict[str, float] | None = None, **fields: Any) -> Record:  # noqa: ANN401 - any field
    """An instance that has all models, some of them in memory."""
    fields = {"max_concurrent": 1, **fields}
    record = machine.add(
        name,
        capabilities=frozenset(f"model:{model}" for model in SIZES),
        warm=frozenset(f"model:{model}" for model in warm),
        details={"models": {model: {"size": size} for model, size in (SIZES if sizes is None else sizes).items()}},
        **fields,
    )
    board(machine).see(record.instance)
    return record


def ask(machine: Bench, model: str, **fields: Any) -> Ticket:  # noqa: ANN401 - any field
    """A request for a model."""
    return machine.submit(capabilities=frozenset({f"model:{model}"}), **fields)


def once(machine: Bench, model: str, total_s: float, **fields: Any) -> str:  # noqa: ANN401 - any field
    """One from its beginning to its end."""
    ticket = ask(machine, model, **fields)
    assert machine.where(ticket)
    machine.clock.advance(total_s)
    return machine.end(ticket, total_s)


def board(machine: Bench) -> Board:
    """What all its strategies share."""
    return Board.of(machine.clock)


def trained(*names: str) -> Bench:
    """Two instances that take 2 s for a request, one with the model and busy."""
    machine = bench()
    for name in names:
        put(machine, name, "a" if name == "warm" else "b")
    for _ in range(20):
        once(machine, "a", 2.0)
    return machine
