"""A whole provider: a shell-like calculator in a child process, pooled, checked, replaced."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, Field

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_core.hub_provider import HubProvider, PoolOptions
from gleitzeit_core.requests import Method
from gleitzeit_core.resources import Requirements
from gleitzeit_core.testing.conformance import HubConformance, ProviderConformance
from gleitzeit_core.testing.todo import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from gleitzeit_core.hub import ResourceHub
    from gleitzeit_core.provider import Provider
    from gleitzeit_core.resources import ResourceInstance


class SumParams(BaseModel):
    """What to add up."""

    numbers: list[float]


class CalculatorOptions(PoolOptions):
    """How to start one."""

    command: tuple[str, ...] = (sys.executable, "-uc", "while True: print(eval(input()))")
    places: int = Field(default=6, ge=0, description="Digits behind the point.")


class Calculator(HubProvider[CalculatorOptions]):
    """Adds numbers up, each time in one of a few child processes."""

    protocol = "calculator"
    options_type = CalculatorOptions
    methods = (
        Method(name="calculator/sum", summary="the sum", replayable=True, params=SumParams),
        Method(name="calculator/steps", summary="the sum, step by step", replayable=True, streams=True),
    )

    async def create_resource(self, config: CalculatorOptions) -> asyncio.subprocess.Process:
        """A child process that evaluates lines."""
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(*config.command, stdin=pipe, stdout=pipe)

    async def destroy_resource(self, instance: ResourceInstance) -> None:
        """End it."""
        process = instance.handle
        if process.returncode is None:
            process.kill()
        await process.communicate()

    async def check_resource(self, instance: ResourceInstance) -> bool:
        """Whether it still runs."""
        return instance.handle.returncode is None

    async def execute_on_resource(self, instance: ResourceInstance, method: str, params: Mapping[str, Any]) -> Any:  # noqa: ANN401 - a number
        """One line there, one line back."""
        del method
        return await self._evaluate(instance, params["numbers"])

    async def stream_on_resource(
        self, instance: ResourceInstance, method: str, params: Mapping[str, Any]
    ) -> AsyncIterator[Any]:
        """The sum of the first, the first two, ..."""
        del method
        for count in range(1, len(params["numbers"]) + 1):
            yield await self._evaluate(instance, params["numbers"][:count])

    async def _evaluate(self, instance: ResourceInstance, numbers: list[float]) -> float:
        process = instance.handle
        if process.returncode is not None:
            raise InstanceFailure(FailureKind.REFUSED, "its process has ended", started=False)
        process.stdin.write(f"sum({numbers!r})\n".encode())
        line = await process.stdout.readline()
        if not line:
            raise InstanceFailure(FailureKind.LOST, "its process has ended")
        return round(float(line), self.options.places)


class TestCalculator(ProviderConformance):
    """It passes what every provider must."""

    example: ClassVar[tuple[str, Mapping[str, Any]]] = ("calculator/sum", {"numbers": [1, 2]})
    invalid = ("calculator/sum", {"numbers": "many"})

    async def make_provider(self) -> Provider[Any]:
        """At most two processes."""
        return Calculator(CalculatorOptions(max_total=2))


class TestCalculatorStream(ProviderConformance):
    """And in parts."""

    example: ClassVar[tuple[str, Mapping[str, Any]]] = ("calculator/steps", {"numbers": [1, 2]})
    streams = True

    async def make_provider(self) -> Provider[Any]:
        """At most two processes."""
        return Calculator(CalculatorOptions(max_total=2))


class TestCalculatorHub(HubConformance):
    """The hub that comes with it passes what every hub must."""

    creates = True
    limit = 2
    requirements = Requirements(accepts=Calculator.accepts)

    async def make_hub(self) -> ResourceHub[Any]:
        """As the provider makes it."""
        return Calculator(CalculatorOptions(max_total=2)).make_hub()


async def test_a_provider_of_eighty_lines_survives_the_death_of_its_processes() -> None:
    """Pooling, scaling, failover and replacement come with it."""
    async with asyncio.timeout(PATIENCE_S), Calculator(CalculatorOptions(min_total=2)) as calculator:
        hub = calculator.make_hub()
        assert await calculator.execute("calculator/sum", {"numbers": [0.1, 0.2]}) == 0.3
        victim = hub.instances[0]
        victim.handle.kill()
        await victim.handle.wait()
        assert [await calculator.execute("calculator/sum", {"numbers": [n]}) for n in range(10)] == list(range(10))
        await calculator.dispatcher.shell.health.check(victim.id)
        while len(hub.instances) < 2 or any(report.state != "ready" for report in calculator.dispatcher.reports()):
            await asyncio.sleep(0)
        assert victim.id not in [instance.id for instance in hub.instances]
        assert [part async for part in calculator.stream("calculator/steps", {"numbers": [1, 2]})] == [1, 3]
