from __future__ import annotations

from math import floor
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gleitzeit_core.errors import FailureKind
from gleitzeit_core.pool import State
from gleitzeit_core.requests import Result
from gleitzeit_core.routing import Route, Share
from gleitzeit_core.testing.machine import Machine

if TYPE_CHECKING:
    from gleitzeit_core.routing import Ticket

GOLD = Share(share=0.5, tenant="gold")
LLAMA = Share(share=0.5, model="llama")
WITH_LLAMA = frozenset({"model:llama"})


def machine(*shares: Share, slots: int = 4, instances: int = 1, **changes: Any) -> Machine:  # noqa: ANN401 - any field
    """With so many instances of so many slots, and a route that keeps `shares`."""
    made = Machine(shares=shares)
    made.admission.set_routes([made.route])
    for number in range(instances):
        made.add(f"i{number}", max_concurrent=slots, **changes)
    return made


def running(machine: Machine, **fields: Any) -> list[Ticket]:  # noqa: ANN401 - any field
    """Submit until one waits: those that got a slot."""
    found = []
    while (ticket := machine.submit(**fields)) in machine.granted:
        found.append(ticket)
    machine.admission.cancel(ticket)
    return found


# -- what is kept -------------------------------------------------------------------------------------------------------


def test_the_last_slots_are_kept_for_whose_they_are() -> None:
    """Others get what the share leaves; its tenant gets the rest, at once."""
    bench = machine(GOLD)
    assert len(running(bench)) == 2
    assert len(running(bench, tenant="gold")) == 2


def test_who_has_a_share_may_use_everything() -> None:
    """A share is no limit."""
    assert len(running(machine(GOLD), tenant="gold")) == 4


def test_a_share_in_use_is_met() -> None:
    """What its tenant holds is not kept for it a second time."""
    bench = machine(GOLD)
    for _ in range(2):
        bench.submit(tenant="gold")
    assert len(running(bench)) == 2
    assert bench.admission.pool.in_flight == 4


def test_parts_of_a_slot_are_not_kept() -> None:
    """Half of three slots is one."""
    assert len(running(machine(GOLD, slots=3))) == 2
    assert len(running(machine(GOLD, slots=1))) == 1
    # 0.29 * 100 is 28.999999999999996.
    assert len(running(machine(Share(share=0.29, tenant="gold"), slots=100))) == 71


def test_all_of_it_can_be_kept() -> None:
    """Then others wait, and are served by nobody until somebody changes that."""
    bench = machine(Share(share=1.0, tenant="gold"))
    assert not running(bench)
    assert len(running(bench, tenant="gold")) == 4


def test_a_share_of_a_model_is_kept_where_that_model_is() -> None:
    """Requests for another model use freely what has only the other, and half of what has both."""
    bench = Machine(shares=(LLAMA,))
    other = frozenset({"model:other"})
    bench.add("both", max_concurrent=4, capabilities=WITH_LLAMA | other)
    bench.add("other", max_concurrent=4, capabilities=other)
    assert sorted(bench.where(ticket) for ticket in running(bench, capabilities=other)) == ["both"] * 2 + ["other"] * 4
    assert len(running(bench, capabilities=WITH_LLAMA)) == 2


def test_a_share_of_a_tenant_for_a_model_is_for_both_together() -> None:
    """Neither the tenant's other requests nor others' requests for the model may use it."""
    bench = machine(Share(share=0.5, tenant="gold", model="llama"), capabilities=WITH_LLAMA | {"model:other"})
    assert len(running(bench, tenant="gold", capabilities=frozenset({"model:other"}))) == 2
    assert not running(bench, capabilities=WITH_LLAMA)
    assert len(running(bench, tenant="gold", capabilities=WITH_LLAMA)) == 2


def test_several_shares_add_up() -> None:
    """Each is kept from all others: what is free must do for both."""
    bench = machine(Share(share=0.25, tenant="a"), Share(share=0.5, tenant="b"), slots=8)
    assert len(running(bench)) == 2
    assert len(running(bench, tenant="a")) == 2
    assert len(running(bench, tenant="b")) == 4


def test_shares_of_models_and_tenants_add_up() -> None:
    """A model's share is part of all that is kept."""
    bench = machine(Share(share=0.25, tenant="a"), LLAMA, slots=8, capabilities=WITH_LLAMA)
    assert len(running(bench)) == 2
    assert len(running(bench, tenant="a")) == 2
    assert len(running(bench, capabilities=WITH_LLAMA)) == 4


def test_only_what_is_up_counts() -> None:
    """Half of what is left, when half of it goes down."""
    bench = machine(GOLD, instances=2)
    bench.admission.set_state(bench.record("i0").instance.id, State.DOWN)
    assert {bench.where(ticket) for ticket in running(bench)} == {"i1"}
    assert bench.admission.pool.in_flight == 2


def test_what_starts_slowly_is_not_kept_for_who_does_not_come() -> None:
    """A share counts on what is usable now: the first slot after a recovery is anybody's, or it would never recover."""
    bench = machine(GOLD)
    for state in (State.DOWN, State.READY):
        bench.admission.set_state(bench.record("i0").instance.id, state)
    (trial,) = running(bench)
    bench.release(trial)
    assert len(running(bench)) == 1
    assert bench.record("i0").room == 1


def test_other_routes_do_not_count() -> None:
    """A share is of a route: what other routes send may use its slots."""
    bench = machine(GOLD)
    other = Route(name="other", methods=("*",), strategy=bench.route.strategy)
    tickets = [bench.ticket() for _ in range(4)]
    for ticket in tickets:
        ticket.route = other
    assert all(bench.where(bench.submit(ticket)) for ticket in tickets)


def test_a_retry_respects_shares_as_well() -> None:
    """Of the instances it was not tried on, it gets what others leave."""
    bench = machine(GOLD, slots=2, instances=2)
    again = bench.ticket()
    again.excluded = frozenset({(bench.record("i0").instance.id, 0)})
    assert bench.where(bench.submit(again)) == "i1"
    assert len(running(bench)) == 1


# -- those who wait -----------------------------------------------------------------------------------------------------


def test_who_has_a_share_is_found_behind_many_who_have_none() -> None:
    """However many wait before it for what they may not have."""
    bench = machine(GOLD)
    others = running(bench)
    waiting = [bench.submit() for _ in range(50)]
    assert bench.where(bench.submit(tenant="gold")) == "i0"
    bench.release(others[0])
    assert [bench.where(ticket) for ticket in waiting[:2]] == ["i0", ""]


def test_those_who_wait_get_what_is_no_longer_needed() -> None:
    """When its tenant begins more work than its share is, elsewhere, or the share is given up."""
    bench = machine(instances=1)
    reservation = bench.admission.reserve("all", GOLD)
    running(bench)
    waiting = bench.submit()
    assert waiting.waits
    reservation.release()
    assert bench.where(waiting) == "i0"


def test_who_meets_two_shares_at_once_leaves_room_for_another() -> None:
    """A slot that counts for a tenant and for a model frees what was kept for both, for who waits in another queue."""
    bench = machine(Share(share=0.25, tenant="a"), Share(share=0.25, model="llama"), capabilities=WITH_LLAMA)
    running(bench)
    waiting = bench.submit()
    assert waiting.waits
    assert bench.where(bench.submit(tenant="a", capabilities=WITH_LLAMA)) == "i0"
    assert bench.where(waiting) == "i0"


# -- reservations -------------------------------------------------------------------------------------------------------


def test_a_reservation_lasts_until_it_is_released() -> None:
    """Releasing it again changes nothing."""
    bench = machine()
    reservation = bench.admission.reserve("all", GOLD)
    others = running(bench)
    assert len(others) == 2
    reservation.release()
    reservation.release()
    assert not reservation.active
    assert len(running(bench)) == 2


def test_a_reservation_is_a_context_manager() -> None:
    """It is released when its block is left, however that happens."""
    bench = machine()
    with pytest.raises(ZeroDivisionError), bench.admission.reserve("all", GOLD) as reservation:
        _ = 1 / (not reservation.active)
    assert not reservation.active
    assert len(running(bench)) == 4


def test_reservations_come_on_top_of_the_routes_own_shares() -> None:
    """Also for the same tenant, whose shares add up."""
    bench = machine(Share(share=0.25, tenant="gold"))
    with bench.admission.reserve("all", Share(share=0.5, tenant="gold")):
        (only,) = running(bench)
    assert len(running(bench)) == 2
    bench.release(only)


def test_what_runs_counts_for_a_reservation_that_comes_later() -> None:
    """On a route with shares it is known whose each slot is."""
    bench = machine(Share(share=0.25, tenant="silver"))
    bench.submit(tenant="gold")
    bench.submit(tenant="gold")
    bench.admission.reserve("all", GOLD)
    assert len(running(bench)) == 1


def test_more_than_everything_cannot_be_kept() -> None:
    """Neither by a route nor by reservations; the numbers are in the error, and nothing has changed."""
    with pytest.raises(ValueError, match="the shares of route 'all' come to 110%, which is more than there is"):
        machine(Share(share=0.6, tenant="a"), Share(share=0.5, tenant="b"))
    bench = machine(GOLD)
    bench.submit()
    with pytest.raises(ValueError, match="come to 101%"):
        bench.admission.reserve("all", Share(share=0.51, tenant="b"))
    assert len(running(bench)) == 1
    # Tenths that do not add up to quite one.
    machine(*[Share(share=0.1, tenant=str(number)) for number in range(10)])


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01, float("nan")])
def test_a_share_is_a_part(share: float) -> None:
    """Above 0 and at most 1."""
    with pytest.raises(ValueError, match="a share of route 'all' must be above 0 and at most 1"):
        machine(Share(share=share, tenant="a"))
    with pytest.raises(ValueError, match="must be above 0"):
        machine().admission.reserve("all", Share(share=share, tenant="a"))


def test_new_shares_of_a_route_must_leave_what_is_reserved() -> None:
    """Or nothing of the new routes is taken over."""
    bench = machine()
    bench.admission.reserve("all", GOLD)
    changed = Route(
        name="all", methods=("*",), strategy=bench.route.strategy, shares=(Share(share=0.75, tenant="x"),), max_queue=0
    )
    with pytest.raises(ValueError, match="come to 125%"):
        bench.admission.set_routes([changed])
    assert len(running(bench)) == 2


def test_shares_change_with_their_route() -> None:
    """What its tenants hold already counts."""
    bench = machine(Share(share=0.25, tenant="a"))
    bench.submit(tenant="b")
    shares = (Share(share=0.5, tenant="b"),)
    bench.admission.set_routes([Route(name="all", methods=("*",), strategy=bench.route.strategy, shares=shares)])
    assert len(running(bench)) == 2
    bench.admission.set_routes([Route(name="all", methods=("*",), strategy=bench.route.strategy)])
    assert len(running(bench)) == 1


def test_it_shows_what_is_kept() -> None:
    """For people."""
    bench = machine(GOLD)
    reservation = bench.admission.reserve("all", LLAMA)
    bench.submit()
    assert repr(bench.admission._shares["all"]) == "<Shares of all, 2 kept, 1 slots>"
    assert repr(reservation).startswith("<Reservation on all Share(share=0.5, tenant='', model='llama')>")
    reservation.release()
    assert repr(reservation).endswith(", released>")


# -- always ----------------------------------------------------------------------------------------------------------------


@given(
    share=st.floats(0.01, 1.0),
    slots=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    events=st.lists(st.tuples(st.sampled_from(["gold", "other", "end", "fail"]), st.integers(0, 30)), max_size=60),
)
def test_a_tenant_always_gets_its_share_at_once(share: float, slots: list[int], events: list[tuple[str, int]]) -> None:
    """Whatever others do: with less than its share in use, its next request does not wait; and nobody waits in vain."""
    bench = Machine(shares=(Share(share=share, tenant="gold"),))
    for number, count in enumerate(slots):
        bench.add(f"i{number}", max_concurrent=count)
    kept = floor(share * sum(slots) + 1e-9)
    waiting: list[Ticket] = []
    for event, number in events:
        mine = sum(ticket.request.tenant == "gold" for ticket in bench.granted)
        holders = list(bench.granted)
        if event in ("gold", "other"):
            ticket = bench.submit(tenant=event)
            if event == "gold" and mine < kept:
                assert ticket in bench.granted
            waiting.append(ticket)
        elif holders:
            ended = holders[number % len(holders)]
            bench.release(ended, FailureKind.REJECTED if event == "fail" else None)
        waiting = [ticket for ticket in waiting if ticket.waits]
        used = sum(ticket.request.tenant == "gold" for ticket in bench.granted)
        free = sum(slots) - len(bench.granted)
        assert not (free and any(ticket.request.tenant == "gold" for ticket in waiting))
        assert not (free > max(0, kept - used) and waiting)
    for ticket in list(waiting):
        bench.admission.cancel(ticket)
    for ticket in list(bench.granted):
        bench.release(ticket, result=Result.CANCELLED)
    if "all" in bench.admission._shares:
        shares = bench.admission._shares["all"]
        assert not shares._held
        assert not any(kept.used for kept in shares._kept)
