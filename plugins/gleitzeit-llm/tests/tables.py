"""What must hold of every table of fields, whichever API it is for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import InvalidRequest
from gleitzeit_llm.dialects.fields import Fate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from gleitzeit_llm.dialects.fields import Field, Table


def rows(tables: Mapping[str, Table], fate: Fate) -> list[Any]:
    """Those of a fate, as parameters of a test: the table's name and the field's."""
    return [
        pytest.param(where, name, id=f"{where} {name}")
        for where, rules in tables.items()
        for name, row in rules.rows.items()
        if row.fate is fate
    ]


def has(target: dict[str, Any], place: str) -> bool:
    """Whether there is something at a dotted place."""
    found: Any = target
    for key in place.split("."):
        if not isinstance(found, dict) or key not in found:
            return False
        found = found[key]
    return True


def check_refused(row: Field, param: str, ask: Callable[[], object]) -> None:
    """Asking so raises, with the field's name and the row's reason."""
    with pytest.raises(InvalidRequest) as caught:
        ask()
    assert caught.value.param == param
    assert param in caught.value.message
    assert row.why in caught.value.message


def check_complete(tables: Iterable[Table]) -> None:
    """A refused or ignored row has a reason, a mapped one a place, and each has its own name as key."""
    for rules in tables:
        for name, row in rules.rows.items():
            assert row.name == name
            assert bool(row.to) is (row.fate is Fate.MAPPED)
            assert bool(row.why) is (row.fate is not Fate.MAPPED)
