"""Where a request for a model goes, and what has to go for it."""

from __future__ import annotations

from .benches import ask, bench, board, once, put


def test_the_one_that_has_the_model_gets_it() -> None:
    """Each model at its own."""
    machine = bench()
    put(machine, "x", "a")
    put(machine, "y", "b")
    for _ in range(10):
        assert once(machine, "a", 1.0) == "x"
        assert once(machine, "b", 1.0) == "y"


def test_it_stays_where_it_was_loaded_though_nobody_says_so() -> None:
    """Until the next health check only the strategy knows what it has loaded where."""
    machine = bench()
    for name in "xyz":
        put(machine, name)
    first = once(machine, "a", 5.0)
    assert {once(machine, "a", 1.0) for _ in range(20)} == {first}


def test_what_was_loaded_long_ago_is_not_taken_to_be_there_for_good() -> None:
    """A server that has loaded and unloaded it while nobody looked says the same as before; one that cannot say, too."""
    machine = bench()
    record = put(machine, "x")
    once(machine, "a", 5.0)
    place = board(machine).see(put(machine, "x", tags=frozenset({"new"})).instance)
    assert "a" in place.resident
    machine.clock.advance(100)
    board(machine).at(machine.clock.monotonic())
    assert board(machine).see(put(machine, "x").instance) is place
    assert "a" not in place.resident
    assert record.instance.id not in board(machine).holders("a").ids


def test_a_server_that_says_that_it_has_unloaded_is_believed() -> None:
    """Then another that has it goes first."""
    machine = bench()
    put(machine, "x", "a")
    put(machine, "y")
    assert once(machine, "a", 1.0) == "x"
    put(machine, "x")
    put(machine, "y", "a")
    assert once(machine, "a", 1.0) == "y"


def test_a_cold_one_is_chosen_for_what_it_puts_out() -> None:
    """An empty one before one whose model is in demand."""
    machine = bench()
    put(machine, "x", "a")
    put(machine, "y", "b")
    for _ in range(20):
        once(machine, "b", 0.1)
    put(machine, "z", "c")
    assert once(machine, "a", 1.0) == "x"
    machine.record("x").room = 0
    machine.clock.advance(1)
    ticket = ask(machine, "a")
    if not machine.where(ticket):
        machine.clock.advance(60)
    assert machine.where(ticket) == "z"


def test_small_models_load_where_they_fit() -> None:
    """An instance that has been seen with enough in memory need not put anything out."""
    machine = bench(horizon_s=600)
    put(machine, "large", "a", "b", "c")
    put(machine, "large", "a", "b")
    put(machine, "small", "b")
    for name in ("large", "small"):
        place = board(machine).see(machine.record(name).instance)
        expected = [] if name == "large" else ["b"]
        assert place.evicted_by(machine.record(name).instance, "c") == expected


def test_the_longest_unused_goes_first() -> None:
    """As Ollama does it."""
    machine = bench()
    record = put(machine, "x", "a", "c")
    once(machine, "a", 1.0)
    place = board(machine).see(record.instance)
    assert place.evicted_by(record.instance, "b") == ["c", "a"]
    put(machine, "x", "a", "b")
    assert place.evicted_by(machine.record("x").instance, "c") == ["a"]


def test_without_sizes_models_are_counted() -> None:
    """As many fit as were seen at once."""
    machine = bench()
    put(machine, "x", "a", "b", sizes={})
    put(machine, "x", "a", sizes={})
    place = board(machine).see(machine.record("x").instance)
    assert place.evicted_by(machine.record("x").instance, "b") == []
    put(machine, "x", "a", "b", sizes={})
    assert place.evicted_by(machine.record("x").instance, "c") == ["a"]
