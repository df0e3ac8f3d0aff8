"""All strategies in the same simulated traffic: ``python benchmarks/strategies.py``, or with ``--write`` into the docs.

The real `Admission` machine - pool, breakers, queues, strategies - on a clock moved by hand, before simulated servers.
No time is measured, so the figures are the same on every machine. Every strategy of a scenario gets the same requests
at the same times.
"""

from __future__ import annotations

import math
import sys
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from gleitzeit_core.effects import Granted
from gleitzeit_core.errors import FailureKind, RequestError
from gleitzeit_core.plugins import PluginHost
from gleitzeit_core.requests import Outcome, Result, Usage
from gleitzeit_core.testing.machine import Machine, make_instance

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gleitzeit_core.effects import Effect
    from gleitzeit_core.pool import Slot
    from gleitzeit_core.routing import Ticket

PAGE = Path(__file__).parent.parent / "docs/strategies.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
REQUESTS = 2000
CHECK_S = 10.0
PER_TOKEN_S = 0.02
PROMPT_S = 0.2
# Each request beside it makes one slower by this much.
CROWD = 0.15
CACHED_CONVERSATIONS = 24
FAILS_AFTER_S = 0.001


@dataclass(frozen=True, slots=True)
class ServerKind:
    """A server.

    Args:
        speed: Relative to others.
        fails: How many of its answers are a 500 after a millisecond, from 0 to 1.
        weight: What the configuration says of it.
        tags: Likewise.
    """

    speed: float = 1.0
    fails: float = 0.0
    weight: float = 1.0
    tags: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Scenario:
    """Servers and traffic.

    Args:
        title: For the table.
        text: What happens.
        servers: All of them, each with four slots.
        per_s: Requests a second, on average.
        models: (name, part of the requests, seconds to load); each server has memory for one of them. None: no models.
        conversations: How many go on at once; a turn is quick where the last one was. 0: each request is by itself.
        prompt_s: How long it takes to read a prompt that is not cached.
        max_tries: Instances tried for one request.
        rows: Strategies by what the table calls them.
    """

    title: str
    text: str
    servers: Sequence[ServerKind]
    per_s: float
    models: Sequence[tuple[str, float, float]] = ()
    conversations: int = 0
    prompt_s: float = PROMPT_S
    max_tries: int = 3
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


PLAIN: dict[str, dict[str, Any]] = {
    name: {"name": name}
    for name in ("least_loaded", "round_robin", "random", "weighted", "power_of_two", "ewma", "adaptive")
}
PLAIN |= {name: {"name": name} for name in ("consistent_hash", "model_affinity")}
FAST = frozenset({"fast"})
TIERS = {"priority, the fast first": {"name": "priority", "tiers": ["fast"]}}
TOLD = {f"{name}, with weights": {"name": name, "told": True} for name in ("least_loaded", "weighted", "power_of_two")}

SCENARIOS = (
    Scenario(
        "Different speeds",
        "Eight servers: two are four times, two twice as fast as the other four. Nobody has configured weights, except "
        "where the row says so.",
        [
            *[ServerKind(speed=4, weight=4, tags=FAST)] * 2,
            *[ServerKind(speed=2, weight=2, tags=FAST)] * 2,
            *[ServerKind()] * 4,
        ],
        per_s=11.0,
        rows={**PLAIN, **TOLD, **TIERS},
    ),
    Scenario(
        "One fails fast",
        "Six equal servers; one answers 40 % of its requests with 500 after a millisecond, which is too seldom for its "
        "breaker. Requests are not tried again.",
        [ServerKind(fails=0.4), *[ServerKind()] * 5],
        per_s=4.0,
        max_tries=1,
        rows=PLAIN,
    ),
    Scenario(
        "One is slow",
        "Six servers; one is ten times slower than the others, and nothing says so.",
        [ServerKind(speed=0.1), *[ServerKind()] * 5],
        per_s=3.5,
        rows=PLAIN,
    ),
    Scenario(
        "Two models",
        "Four equal servers with memory for one of two models. Three of four requests are for a large one that takes "
        "12 s to load, the others for one that takes 5 s.",
        [ServerKind()] * 4,
        per_s=1.6,
        models=(("large", 0.75, 12.0), ("small", 0.25, 5.0)),
        rows=PLAIN,
    ),
    Scenario(
        "Conversations",
        "Six equal servers, 90 conversations. Reading the prompt takes 4 s, but hardly anything where the last turn of "
        "the conversation was among the last 24.",
        [ServerKind()] * 6,
        per_s=2.0,
        conversations=90,
        prompt_s=4.0,
        rows=PLAIN,
    ),
)


@dataclass(slots=True, eq=False)
class Work:
    """A request in the simulation."""

    arrived_at: float
    tokens: int
    luck: float
    model: str
    conversation: str
    tries: int = 0


class Server:
    """A simulated server. Requests for a model that is not loaded wait until those for the other have ended."""

    def __init__(self, number: int, kind: ServerKind, simulation: Simulation) -> None:
        self.kind, self.simulation, self.name = kind, simulation, f"s{number}"
        self.loaded = ""
        self.loads = 0
        self.running = 0
        self.waiting: deque[tuple[Ticket, Slot, Work]] = deque()
        self.cache: OrderedDict[str, None] = OrderedDict()

    def take(self, ticket: Ticket, slot: Slot, work: Work) -> None:
        """A request comes."""
        if work.luck < self.kind.fails:
            self.simulation.after(FAILS_AFTER_S, lambda: self.simulation.failed(ticket, slot, work))
            return
        self.waiting.append((ticket, slot, work))
        self._go_on()

    def _go_on(self) -> None:
        while self.waiting:
            work = self.waiting[0][2]
            load_s = 0.0
            if work.model and work.model != self.loaded:
                if self.running:
                    return
                load_s = self.simulation.load_s[work.model]
                self.loaded, self.loads = work.model, self.loads + 1
            self._begin(*self.waiting.popleft(), load_s)
            if load_s:
                # Those behind it begin when it is loaded.
                return

    def _begin(self, ticket: Ticket, slot: Slot, work: Work, load_s: float) -> None:
        self.running += 1
        prompt_s = self.simulation.scenario.prompt_s
        if work.conversation:
            prompt_s = PROMPT_S if work.conversation in self.cache else prompt_s
            self.cache[work.conversation] = None
            self.cache.move_to_end(work.conversation)
            if len(self.cache) > CACHED_CONVERSATIONS:
                self.cache.popitem(last=False)
        pace = (1 + CROWD * (self.running - 1)) / self.kind.speed
        first_s = load_s + prompt_s * pace
        total_s = first_s + (work.tokens - 1) * PER_TOKEN_S * pace
        if load_s:
            self.simulation.after(load_s, self._go_on)
        self.simulation.after(total_s, lambda: self._end(ticket, slot, work, (total_s - first_s) / work.tokens))

    def _end(self, ticket: Ticket, slot: Slot, work: Work, each_s: float) -> None:
        self.running -= 1
        self.simulation.done(ticket, slot, work, each_s)
        self._go_on()


class Simulation(Machine):
    """A scenario with one strategy."""

    def __init__(self, scenario: Scenario, named: Mapping[str, Any], host: PluginHost, seed: int = 1) -> None:
        options = {key: value for key, value in named.items() if key not in ("name", "told")}
        kind = host.strategy_type(named["name"])
        target, checked = host.load_target(kind), host.load_options(kind)(**options)
        super().__init__(
            lambda random, clock: target(checked, random=random, clock=clock),
            seed=seed,
            max_queue=10_000,
            timeout_s=None,
            max_tries=scenario.max_tries,
        )
        self.scenario, self.traffic = scenario, Random(seed)
        self.load_s = {name: seconds for name, _, seconds in scenario.models}
        self.servers = {f"s{number}": Server(number, it, self) for number, it in enumerate(scenario.servers)}
        self.told = named.get("told", False)
        self.works: dict[Ticket, Work] = {}
        self.total_s: list[float] = []
        self.first_s: list[float] = []
        self.errors = 0
        self.left = 0

    def run(self, requests: int = REQUESTS) -> Simulation:
        """All of it."""
        self.left = requests
        self.check()
        self.arrive(requests)
        while self.left:
            self.clock.advance(CHECK_S)
        return self

    def after(self, seconds: float, call: Any) -> None:  # noqa: ANN401 - any callable
        """Later."""
        self.clock.call_at(self.clock.monotonic() + seconds, call)

    def check(self) -> None:
        """What health checks find out, now and then."""
        names = frozenset(f"model:{name}" for name in self.load_s)
        for server in self.servers.values():
            instance = make_instance(
                server.name,
                capabilities=names,
                warm=frozenset({f"model:{server.loaded}"} if server.loaded else ()),
                weight=server.kind.weight if self.told else 1.0,
                tags=server.kind.tags,
                max_concurrent=4,
            )
            self.admission.put(instance)
        if self.left:
            self.after(CHECK_S, self.check)

    def arrive(self, left: int) -> None:
        """A request comes, and then the next."""
        random, scenario = self.traffic, self.scenario
        model = (
            random.choices(*zip(*((name, part) for name, part, _ in scenario.models), strict=True))[0]
            if self.load_s
            else ""
        )
        talk = f"c{random.randrange(scenario.conversations)}" if scenario.conversations else ""
        tokens = max(1, round(random.lognormvariate(4.6, 0.7)))
        work = Work(self.clock.monotonic(), tokens, random.random(), model, talk)
        ticket = self.ticket(
            capabilities=frozenset({f"model:{model}"} if model else ()),
            affinity=talk or f"caller {random.randrange(200)}",
            stream=True,
        )
        if left > 1:
            self.after(random.expovariate(scenario.per_s), lambda: self.arrive(left - 1))
        self.works[ticket] = work
        self.ask(ticket)

    def ask(self, ticket: Ticket) -> None:
        """For a slot."""
        try:
            slot = self.admission.submit(ticket)
        except RequestError:
            self.errors += 1
            self.left -= 1
            return
        if slot is not None:
            self.begin(ticket, slot)

    def _deliver(self, effect: Effect) -> None:
        match effect:
            case Granted(ticket, slot):
                self.begin(ticket, slot)

    def begin(self, ticket: Ticket, slot: Slot) -> None:
        """On its instance."""
        self.works[ticket].tries += 1
        self.servers[slot.instance.endpoint].take(ticket, slot, self.works[ticket])

    def failed(self, ticket: Ticket, slot: Slot, work: Work) -> None:
        """With 500."""
        outcome = Outcome(result=Result.FAILED, kind=FailureKind.SERVER_ERROR, total_s=FAILS_AFTER_S)
        self.admission.release(ticket, slot, outcome)
        if work.tries < self.scenario.max_tries:
            ticket.excluded |= {(slot.instance.id, slot.instance.generation)}
            self.ask(ticket)
        else:
            self.errors += 1
            self.left -= 1

    def done(self, ticket: Ticket, slot: Slot, work: Work, each_s: float) -> None:
        """With an answer."""
        now = self.clock.monotonic()
        answered_s = now - slot.taken_at
        first_s = answered_s - each_s * work.tokens
        self.total_s.append(now - work.arrived_at)
        self.first_s.append(slot.taken_at + first_s - work.arrived_at)
        usage = Usage(output_tokens=work.tokens)
        outcome = Outcome(result=Result.OK, total_s=answered_s, first_output_s=first_s, usage=usage)
        self.left -= 1
        self.admission.release(ticket, slot, outcome)


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest rank."""
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * percent / 100) - 1)] if ranked else math.nan


def row(name: str, simulation: Simulation, requests: int) -> str:
    """A row of the table."""
    cells = [f"{percentile(values, p):.1f}" for values in (simulation.total_s, simulation.first_s) for p in (50, 99)]
    loads = [str(sum(server.loads for server in simulation.servers.values()))] if simulation.load_s else []
    return f"| {' | '.join([name, *cells, f'{simulation.errors / requests:.1%}', *loads])} |"


def table(scenario: Scenario, requests: int = REQUESTS) -> str:
    """A scenario, as Markdown: strategies by their 99th percentile, the losers at the end."""
    host = PluginHost.load()
    runs = {name: Simulation(scenario, named, host).run(requests) for name, named in scenario.rows.items()}
    ranked = sorted(runs, key=lambda name: (round(runs[name].errors / requests, 3), percentile(runs[name].total_s, 99)))
    head = ["strategy", "p50", "p99", "first output p50", "first output p99", "errors"]
    head += ["loads"] if scenario.models else []
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [row(name, runs[name], requests) for name in ranked]
    return f"### {scenario.title}\n\n{scenario.text}\n\n" + "\n".join(lines) + "\n"


def written(page: str, figures: str) -> str:
    """The page with these figures."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{figures}\n{END}{rest.partition(END)[2]}"


def main(arguments: list[str]) -> None:
    """Print all tables, or write them into the page."""
    figures = "\n".join(table(scenario) for scenario in SCENARIOS)
    if "--write" in arguments:
        PAGE.write_text(written(PAGE.read_text(), figures))
    else:
        print(figures)


if __name__ == "__main__":
    main(sys.argv[1:])
