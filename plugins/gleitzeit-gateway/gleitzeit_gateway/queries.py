"""The part of a URL after the question mark, read strictly: a misspelt ``?dry_run`` must not really do something."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from gleitzeit_core.errors import InvalidRequest, nearest

if TYPE_CHECKING:
    from gleitzeit_gateway.call import Call

_TRUTHS: Final = {"1": True, "true": True, "yes": True, "": True, "0": False, "false": False, "no": False}


class Query:
    """The parameters of a request.

    Args:
        call: The request.
        known: The parameters that it may have.

    Raises:
        InvalidRequest: It has another, or one of them twice.
    """

    def __init__(self, call: Call, *known: str) -> None:
        self._given = call.request.query
        for name in self._given:
            if name not in known:
                hint = nearest(name, known) or f"known: {', '.join(known) or 'none'}"
                raise InvalidRequest(f"unknown parameter {name!r}; {hint}", param=name)
            if len(self._given.getall(name)) > 1:
                raise InvalidRequest(f"{name!r} is given more than once", param=name)

    def flag(self, name: str) -> bool:
        """Whether ``?name`` or ``?name=1`` stands there.

        Raises:
            InvalidRequest: It has another value.
        """
        value = _TRUTHS.get(self._given.get(name, "0").lower())
        if value is None:
            raise InvalidRequest(f"{name!r} must be 0 or 1", param=name)
        return value

    def seconds(self, name: str, default_s: float) -> float:
        """A time from 0 on.

        Raises:
            InvalidRequest: It is no such number.
        """
        try:
            value_s = float(self._given.get(name, default_s))
        except ValueError:
            value_s = math.nan
        if not 0 <= value_s < math.inf:
            raise InvalidRequest(f"{name!r} must be a number of seconds, from 0 on", param=name)
        return value_s

    def one_of(self, name: str, *values: str) -> str:
        """One of `values`; the first where it is not given.

        Raises:
            InvalidRequest: It is another.
        """
        value = self._given.get(name, values[0])
        if value not in values:
            raise InvalidRequest(f"{name!r} must be {' or '.join(values)}", param=name)
        return value

    def some_of(self, name: str, *values: str) -> tuple[str, ...]:
        """Some of `values`, separated by commas, each once; the first where it is not given.

        Raises:
            InvalidRequest: One is none of them.
        """
        given = tuple(dict.fromkeys(self._given.get(name, values[0]).split(",")))
        for value in given:
            if value not in values:
                raise InvalidRequest(f"{name!r} is made of {', '.join(values)}, with commas between", param=name)
        return given
