"""The routes as they were last set, the balancers of each, and what is kept of them for somebody."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gleitzeit_core.balancing import LoadBalancer
from gleitzeit_core.reservations import Shares

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from random import Random

    from gleitzeit_core.clock import Clock
    from gleitzeit_core.pool import Pool
    from gleitzeit_core.reservations import Reservation
    from gleitzeit_core.resources import Requirements
    from gleitzeit_core.routing import Route, Share, Ticket

_BALANCERS_MAX = 1024


class RouteTable:
    """Finds the balancer of a request. Until routes are set, those count that requests bring.

    Args:
        pool: Theirs.
        clock: Time.
        random: For strategies.
    """

    def __init__(self, pool: Pool, clock: Clock, random: Random) -> None:
        self._pool, self._clock, self._random = pool, clock, random
        self._routes: dict[str, Route] = {}
        self.balancers: dict[tuple[str, Requirements], LoadBalancer] = {}
        # By the names of their routes; those of a route without any are not there.
        self.shares: dict[str, Shares] = {}

    def __repr__(self) -> str:
        """Counts."""
        return f"<RouteTable {len(self._routes)} routes, {len(self.balancers)} balancers>"

    def balancer(self, ticket: Ticket) -> LoadBalancer:
        """The balancer for `ticket`, which keeps it."""
        # The request may have been made before its route was changed.
        route, requirements = self._routes.get(ticket.route.name, ticket.route), ticket.request.requirements
        key = (route.name, requirements)
        found = self.balancers.get(key)
        if found is None:
            found = LoadBalancer(route, requirements, self._pool, self._clock, self._random)
            found.shares = self._shares_of(route)
            # Callers name what they need, so the number of balancers is theirs to choose: it is bounded.
            if len(self.balancers) >= _BALANCERS_MAX:
                self.balancers = {key: b for key, b in self.balancers.items() if b.waiting}
            # Of a route that is gone, a last request is served, and nothing stays.
            if not self._routes or route.name in self._routes:
                self.balancers[key] = found
        ticket.balancer = found
        return found

    def _shares_of(self, route: Route) -> Shares | None:
        if route.shares and route.name not in self.shares:
            self.shares[route.name] = Shares(route.name, route.shares, self._pool)
        return self.shares.get(route.name)

    def set(self, routes: Sequence[Route], balancers: Iterable[LoadBalancer]) -> None:
        """See `Admission.set_routes`; `balancers` are all there are, those of routes that are gone included."""
        # Of two with one name the first is the one that is used.
        named = {route.name: route for route in reversed(routes)}
        kept = {name: named[name].shares if name in named else () for name in self.shares}
        for name, configured in kept.items():
            self.shares[name].check(configured)
        going = ((balancer, named.get(balancer.route.name)) for balancer in balancers)
        changed = {b: (route, route.strategy(self._random, self._clock)) for b, route in going if route is not None}
        # From here on nothing fails.
        self._routes = named
        for name, configured in kept.items():
            self.shares[name].configure(configured)
        for balancer, (route, strategy) in changed.items():
            balancer.change(route, strategy)
            balancer.shares = self._shares_of(route)
        self.balancers = {key: b for key, b in self.balancers.items() if b in changed}

    def reserve(
        self, name: str, share: Share, balancers: Iterable[LoadBalancer], changed: Callable[[], None]
    ) -> Reservation:
        """See `Admission.reserve`; `changed` is called after the reservation was released."""
        route, shares = self._routes.get(name), self.shares.get(name)
        if shares is None:
            shares = Shares(name, route.shares if route is not None else (), self._pool)
        reservation = shares.reserve(share, changed)
        self.shares[name] = shares
        for balancer in balancers:
            if balancer.route.name == name:
                balancer.shares = shares
        return reservation
