"""Requests that come back to a gateway they have been through are refused, or they would go in a circle for ever."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from gleitzeit_core.requests import new_request_id
from gleitzeit_gateway.errors import Refused
from gleitzeit_llm.via import NAME

if TYPE_CHECKING:
    from multidict import CIMultiDictProxy

MAX_GATEWAYS: Final = 8
"""So many gateways may stand one behind the other; nobody means more."""
_KIND: Final = "1.1 gleitzeit-"
# What looks like one and is longer is a caller's own, and would go to every server.
_MARK: Final = re.compile(r"1\.1 gleitzeit-[\w-]{1,64}", re.ASCII)
_LOOP_DETECTED: Final = 508


class Via:
    """The mark of one gateway: ``1.1 gleitzeit-`` and a random id, made anew at every start.

    Only the marks of gateways are sent on: those of other proxies on the way say how the callers' network is built.
    """

    def __init__(self) -> None:
        self.mark = _KIND + new_request_id()

    def __repr__(self) -> str:
        """The mark."""
        return f"<Via {self.mark}>"

    def chain(self, headers: CIMultiDictProxy[str]) -> str:
        """Where a request comes from, and this gateway: what all that is sent on for it is marked with.

        Raises:
            Refused: It has been here before, or has come through too many gateways: 508.
        """
        if NAME not in headers:
            return self.mark
        hops = [hop.strip() for hop in ",".join(headers.getall(NAME)).split(",")]
        gateways = [hop for hop in hops if _MARK.fullmatch(hop)]
        if self.mark in gateways:
            raise Refused(_LOOP_DETECTED, "the request has come back to the gateway that sent it on", "loop")
        if len(gateways) >= MAX_GATEWAYS:
            raise Refused(_LOOP_DETECTED, f"the request has come through {len(gateways)} gateways", "loop")
        return ", ".join((*gateways, self.mark))
