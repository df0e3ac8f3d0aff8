"""What differs between two configurations."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gleitzeit_core.reload import differences

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=4),
    max_leaves=12,
)


@given(PLAIN)
def test_what_is_the_same_does_not_differ(value: object) -> None:
    """Whatever it is."""
    assert list(differences(value, value)) == []


@given(st.lists(st.integers(), max_size=6), st.integers(), st.data())
def test_one_entry_more_is_one_difference(items: list[int], extra: int, data: st.DataObject) -> None:
    """Wherever it was put in or taken out, the others have not changed."""
    place = data.draw(st.integers(0, len(items)))
    more = [*items[:place], extra, *items[place:]]
    ((path, _, after),) = differences(items, more)
    assert after == extra
    assert more[: int(path[0])] == items[: int(path[0])]
    ((_, before, _),) = differences(more, items)
    assert before == extra


@given(PLAIN, PLAIN)
def test_what_differs_is_named(before: object, after: object) -> None:
    """Two values that are not the same have a difference, and each that is told is one."""
    found = list(differences(before, after))
    assert bool(found) == (before != after)
    assert all(old != new for _, old, new in found)
