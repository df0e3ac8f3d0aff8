from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gleitzeit_core.errors import FailureKind
from gleitzeit_core.requests import Outcome, Request, Result
from gleitzeit_core.resources import Requirements
from gleitzeit_core.strategies.base import Wait
from gleitzeit_core.testing.clock import ManualClock
from gleitzeit_strategies.board import Board
from gleitzeit_strategies.model_affinity import ModelAffinity
from gleitzeit_strategies.options import ModelAffinityOptions
from gleitzeit_strategies.places import Running, size_bytes
from gleitzeit_strategies.testing import Bench, LookedAt, PoolView, records

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


# -- where to go


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


# -- waiting


def trained(*names: str) -> Bench:
    """Two instances that take 2 s for a request, one with the model and busy."""
    machine = bench()
    for name in names:
        put(machine, name, "a" if name == "warm" else "b")
    for _ in range(20):
        once(machine, "a", 2.0)
    return machine


def test_a_short_wait_is_better_than_a_load() -> None:
    """4 GB take 4 s, the request before takes 2: it waits, although another one is free."""
    machine = trained("warm", "cold")
    first, second = ask(machine, "a"), ask(machine, "a")
    assert (machine.where(first), machine.where(second)) == ("warm", "")
    machine.clock.advance(2)
    machine.end(first, 2.0)
    assert machine.where(second) == "warm"


def test_a_long_wait_is_worse_than_a_load() -> None:
    """Of five at once the first waits its turn; those that would wait longer than a load takes go elsewhere."""
    machine = trained("warm", "cold")
    tickets = [ask(machine, "a") for _ in range(6)]
    wheres = [machine.where(ticket) for ticket in tickets]
    assert wheres[:2] == ["warm", ""]
    assert "cold" in wheres


def test_the_length_of_the_queue_alone_loads_nothing() -> None:
    """Many quick requests wait shorter than one load."""
    machine = bench()
    put(machine, "warm", "a")
    put(machine, "cold", "b")
    for _ in range(30):
        once(machine, "a", 0.1)
    tickets = [ask(machine, "a") for _ in range(15)]
    assert [machine.where(ticket) for ticket in tickets] == ["warm"] + [""] * 14
    while machine.granted:
        ticket = next(iter(machine.granted))
        machine.clock.advance(0.1)
        assert machine.end(ticket, 0.1) == "warm"


def test_a_queue_that_takes_longer_than_a_load_gets_another_instance() -> None:
    """Counted as a whole: those who wait further back than anybody looks would wait too long. The head stays."""
    for count, loads in ((12, False), (100, True)):
        machine = bench()
        put(machine, "warm", "a", max_concurrent=4)
        put(machine, "cold", "b", max_concurrent=4)
        for _ in range(30):
            once(machine, "a", 1.0)
        tickets = [ask(machine, "a") for _ in range(4 + count)]
        assert machine.strategies[0].waiting == sum(ticket.waits for ticket in tickets) > 0
        wheres = [machine.where(ticket) for ticket in tickets]
        assert ("cold" in wheres) is loads
        assert wheres[4] == ""


def test_those_who_join_the_queue_wait_for_the_quick_one_not_for_the_load() -> None:
    """A free slot beside a load under way is no reason to wait for its end, when another has the model and is quick."""
    machine = bench()
    put(machine, "warm", "a")
    put(machine, "cold", sizes={"a": 60e9}, max_concurrent=4)
    for _ in range(30):
        once(machine, "a", 0.1)
    machine.record("warm").room = 0
    slow = ask(machine, "a")
    machine.clock.advance(100)
    assert machine.where(slow) == "cold"
    machine.record("warm").recount()
    first, second = ask(machine, "a"), ask(machine, "a")
    assert (machine.where(first), machine.where(second)) == ("warm", "")


def test_a_model_that_others_wait_for_has_its_turn() -> None:
    """An older request for another model does not put it out at once; it has its turn next."""
    machine = bench()
    put(machine, "x")
    first, other, second = ask(machine, "a"), ask(machine, "b"), ask(machine, "a")
    machine.clock.advance(5)
    machine.end(first, 5.0)
    assert [machine.where(ticket) for ticket in (other, second)] == ["", "x"]
    machine.clock.advance(1)
    machine.end(second, 1.0)
    assert machine.where(other) == "x"


def test_a_turn_ends() -> None:
    """However many wait for the model that is there."""
    machine = bench()
    put(machine, "x")
    first, other = ask(machine, "a"), ask(machine, "b")
    for _ in range(50):
        ask(machine, "a")
    machine.end(first, 0.0)
    began = machine.clock.monotonic()
    while not machine.where(other):
        machine.clock.advance(1)
        for ticket in tuple(machine.granted):
            if ticket is not other:
                machine.end(ticket, 1.0)
    # Its load was expected to take 4 s, and its turn is twice as long as that.
    assert 12 <= machine.clock.monotonic() - began <= 14


def test_room_is_dearer_where_others_wait() -> None:
    """Of two instances that could load a model the one is chosen whose own model nobody waits for."""
    machine = bench(horizon_s=0)
    put(machine, "x", "b")
    put(machine, "y", "c")
    board(machine).holders("b").queues[machine] = 50
    assert once(machine, "a", 1.0) == "y"


def test_one_that_hangs_holds_up_nobody_for_good() -> None:
    """The wait is estimated anew, without any event: then the cold one is loaded."""
    machine = trained("warm", "cold")
    ask(machine, "a")
    second = ask(machine, "a")
    assert machine.where(second) == ""
    machine.clock.advance(30)
    assert machine.where(second) == "cold"


@given(st.lists(st.floats(0.05, 30), min_size=1, max_size=20), st.integers(0, 50))
def test_no_request_starves(lengths: list[float], seed: int) -> None:
    """Whatever the answers take, and though later requests take slots: each has one within a bounded time."""
    machine = bench()
    machine.random.seed(seed)
    put(machine, "warm", "a")
    put(machine, "cold", "b")
    tickets = []
    for length in lengths:
        tickets.append(ask(machine, "a"))
        machine.clock.advance(length)
        for ticket in tuple(machine.granted):
            machine.end(ticket, length)
    for _ in range(len(lengths)):
        machine.clock.advance(200)
        for ticket in tuple(machine.granted):
            machine.end(ticket, 200.0)
    assert not any(ticket.waits for ticket in tickets)
    assert machine.admission.pool.in_flight == 0


def test_a_wait_says_when_to_ask_again() -> None:
    """Never at once, never much too late."""
    machine = trained("warm", "cold")
    ticket = ask(machine, "a")
    assert machine.where(ticket) == "warm"
    view = machine.admission.balancers[0].snapshot
    answer = machine.admission.balancers[0].strategy.pick(
        machine.ticket().request.changed(requirements=ticket.request.requirements), view
    )
    assert isinstance(answer, Wait)
    assert answer.again_s is not None
    assert 0.1 <= answer.again_s <= 30


def test_nothing_loaded_anywhere_is_loaded_side_by_side() -> None:
    """A burst for a cold model does not pile up behind one load."""
    machine = bench()
    for name in "xyz":
        put(machine, name)
    tickets = [ask(machine, "a") for _ in range(3)]
    assert {machine.where(ticket) for ticket in tickets} == {"x", "y", "z"}


def test_a_load_has_ended_when_the_model_is_seen_or_used() -> None:
    """However long the answer goes on for which it was loaded."""
    machine = bench()
    record = put(machine, "x", max_concurrent=3)
    place = board(machine).see(record.instance)
    first = ask(machine, "a")
    (running,) = place.running.values()
    assert running.load_left_s(machine.clock.monotonic()) == pytest.approx(4.0)
    board(machine).see(put(machine, "x", "a", max_concurrent=3).instance)
    assert running.load_left_s(machine.clock.monotonic()) == 0.0
    machine.end(first)
    ask(machine, "b")
    second = ask(machine, "b")
    (running, _) = place.running.values()
    assert running.load_left_s(machine.clock.monotonic()) == pytest.approx(8.0, rel=0.2)
    machine.end(second)
    assert running.load_left_s(machine.clock.monotonic()) == 0.0


def test_with_room_beside_a_load_the_second_joins_it() -> None:
    """It waits for that load instead of beginning another."""
    machine = bench()
    for name in "xy":
        put(machine, name, max_concurrent=4)
    first, second = ask(machine, "a"), None
    machine.clock.advance(2)
    second = ask(machine, "a")
    assert machine.where(first) == machine.where(second)


# -- learning


def stream(machine: Bench, model: str, first_s: float, total_s: float) -> str:
    """A streamed answer."""
    ticket = ask(machine, model, stream=True)
    machine.clock.advance(total_s)
    return machine.end(ticket, total_s, first_s=first_s)


def test_a_load_is_learned_from_its_first_output() -> None:
    """What the first output of a cold start took longer than that of a warm one."""
    machine = bench()
    put(machine, "x")
    options = ModelAffinityOptions()
    assert board(machine).load_s(machine.record("x").instance, "a", options) == pytest.approx(4.0)
    assert stream(machine, "a", 20.0, 21.0) == "x"
    for _ in range(5):
        stream(machine, "a", 0.5, 1.5)
    put(machine, "x", "b")
    put(machine, "x")
    assert stream(machine, "a", 20.5, 21.5) == "x"
    learned = board(machine).load_s(machine.record("x").instance, "a", options)
    assert learned == pytest.approx(20.0, rel=0.3)


def test_loads_of_others_tell_by_size() -> None:
    """A model never loaded is taken to load as fast, byte by byte, as those that were."""
    machine = bench()
    put(machine, "x")
    options = ModelAffinityOptions()
    stream(machine, "a", 40.0, 41.0)
    assert board(machine).load_s(machine.record("x").instance, "b", options) == pytest.approx(80.0, rel=0.05)


def test_a_whole_answer_tells_only_beside_another() -> None:
    """One cold answer says nothing of the load; with a warm one to compare it does."""
    machine = bench()
    put(machine, "x")
    options = ModelAffinityOptions()
    once(machine, "a", 50.0)
    instance = machine.record("x").instance
    assert board(machine).load_s(instance, "a", options) == pytest.approx(4.0)
    once(machine, "a", 10.0)
    put(machine, "x", "b")
    put(machine, "x")
    once(machine, "a", 40.0)
    assert board(machine).load_s(instance, "a", options) > 15


def test_speed_is_learned_for_each_model_and_instance() -> None:
    """By cost; one that was never used there counts as elsewhere, by weight."""
    machine = bench()
    put(machine, "x", "a", "b")
    put(machine, "y", "b", weight=2)
    for _ in range(30):
        once(machine, "a", 3.0, cost=1.0)
    options = ModelAffinityOptions()
    x, y = machine.record("x").instance, machine.record("y").instance
    assert board(machine).own_s(x, "a", 2.0, options) == pytest.approx(6.0, rel=0.1)
    assert board(machine).own_s(y, "a", 2.0, options) == pytest.approx(3.0, rel=0.1)


def test_a_failed_load_is_no_load() -> None:
    """The model is not taken to be there; what the instance says counts again."""
    machine = bench()
    put(machine, "x", "b")
    ticket = ask(machine, "a")
    assert "a" in board(machine).places[machine.record("x").instance.id].resident
    machine.release(ticket, FailureKind.SERVER_ERROR)
    place = board(machine).see(machine.record("x").instance)
    assert list(place.resident) == ["b"]
    assert board(machine).holders("b").ids == {machine.record("x").instance.id}
    assert not board(machine).holders("a").ids


def test_an_instance_that_goes_holds_nothing() -> None:
    """And what it has counts again when it is back."""
    machine = bench()
    put(machine, "x", "a")
    put(machine, "y", "a")
    once(machine, "a", 1.0)
    gone = machine.record("y").instance.id
    machine.admission.remove(gone)
    once(machine, "a", 1.0)
    assert gone not in board(machine).holders("a").ids
    put(machine, "y", "a")
    once(machine, "a", 1.0)
    assert gone in board(machine).holders("a").ids


def test_a_load_under_way_survives_a_check_that_does_not_show_it() -> None:
    """A server lists a model only when it is loaded."""
    machine = bench()
    put(machine, "x", "b", max_concurrent=2)
    ask(machine, "a")
    put(machine, "x", max_concurrent=2)
    assert "a" in board(machine).see(machine.record("x").instance).resident


def test_what_takes_longer_than_expected_is_expected_to_go_on() -> None:
    """First it becomes less, then more again."""
    running = Running("a", 0.0, 6.0, 3.0, warm=False)
    assert [running.left_s(now) for now in (0.0, 2.0, 4.0, 10.0)] == [6.0, 4.0, 2.0, 5.0]
    assert [running.load_left_s(now) for now in (0.0, 2.0, 5.0, 6.0)] == [3.0, 1.0, 0.75, 0.0]
    assert Running("a", 0.0, 6.0, 0.0, warm=True).load_left_s(2.0) == 0.0


@pytest.mark.parametrize(
    "details",
    [
        {},
        {"models": None},
        {"models": ["a"]},
        {"models": {"a": None}},
        {"models": {"a": {"size": "big"}}},
        {"models": {"a": {"size": -1}}},
    ],
)
def test_odd_descriptions_have_no_size(details: dict[str, Any]) -> None:
    """Then the configured time counts, and nothing is raised."""
    machine = bench(load_s=7)
    instance = machine.add("x", details=details, capabilities=frozenset({"model:a"})).instance
    assert size_bytes(instance, "a") == 0.0
    assert board(machine).load_s(instance, "a", ModelAffinityOptions(load_s=7)) == pytest.approx(7.0)
    assert once(machine, "a", 1.0) == "x"


def test_new_options_keep_what_was_learned() -> None:
    """Speeds, loads, and what is where."""
    machine = trained("warm", "cold")
    strategy = machine.strategies[0]
    strategy.reconfigure(ModelAffinityOptions(load_bytes_per_s=1e6))
    first, second = ask(machine, "a"), ask(machine, "a")
    assert (machine.where(first), machine.where(second)) == ("warm", "")


class NoReferences:
    """A clock of somebody's that cannot be referred to weakly."""

    __slots__ = ("clock",)

    def __init__(self) -> None:
        self.clock = ManualClock()

    def monotonic(self) -> float:
        """Seconds."""
        return self.clock.monotonic()

    wall = monotonic
    call_at = None


def test_any_clock_will_do() -> None:
    """Each strategy learns for itself then."""
    clock: Any = NoReferences()
    assert Board.of(clock) is not Board.of(clock)
    other = ManualClock()
    assert Board.of(other) is Board.of(other)


def test_an_end_without_a_beginning_does_no_harm() -> None:
    """It is not learned from."""
    machine = bench()
    record = put(machine, "x", "a")
    strategy = ModelAffinity(ModelAffinityOptions(), random=Random(0), clock=machine.clock)
    strategy.finished(Request(method="m"), record, Outcome(result=Result.OK, total_s=99.0))
    assert board(machine).own_s(record.instance, "a", 1.0, ModelAffinityOptions()) == pytest.approx(1.0)


@pytest.mark.parametrize("warm", [0, 1, 4096])
def test_thousands_are_not_all_looked_at(warm: int) -> None:
    """Once they are known, a pick draws a few, of those with the model and of all."""
    them = records(4096, capabilities=frozenset({"model:a"}))
    for record in them[:warm]:
        record.instance = record.instance.changed(warm=frozenset({"model:a"}))
    looked = LookedAt(them)
    strategy = ModelAffinity(ModelAffinityOptions(), random=Random(0), clock=ManualClock())
    view = PoolView(looked, them[7])
    request = Request(method="m", requirements=Requirements(accepts=(), capabilities=frozenset({"model:a"})))
    for _ in range(50):
        picked = strategy.pick(request, view)
        assert not isinstance(picked, Wait)
        assert picked is them[0] or warm != 1
    assert looked.whole <= 2
    assert looked.single <= 50 * 4 * 16 * 2
