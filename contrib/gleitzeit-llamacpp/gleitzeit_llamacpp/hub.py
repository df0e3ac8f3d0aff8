"""The hub of llama.cpp: keeps its child processes running."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_core.hub import ResourceHub
from gleitzeit_core.pool import State
from gleitzeit_core.resources import HttpChannel, Ownership, ResourceInstance, instance_id
from gleitzeit_llamacpp.children import Child
from gleitzeit_llamacpp.files import ModelError, entry_of, locate, name_of
from gleitzeit_llamacpp.options import PACKAGED, LlamaCppOptions
from gleitzeit_llamacpp.server import Settings
from gleitzeit_llm import models
from gleitzeit_llm.upstream import Upstream

if TYPE_CHECKING:
    from pathlib import Path

    from gleitzeit_llamacpp.options import ModelOptions

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 30.0
_STEADY_S: Final = 60.0
_QUICK_S: Final = 5.0
_GIVE_UP_AFTER: Final = 5
# Where an instance is said to be while it has no address.
_NOWHERE: Final = HttpChannel("http://starting.invalid")


@dataclass(slots=True, eq=False)
class _Seat:
    """The place of one process, taken by one after another."""

    instance: ResourceInstance
    settings: Settings
    path: Path
    child: Child | None = None
    keeper: asyncio.Task[None] | None = None
    crashes: int = 0
    quick: int = 0
    reason: str = ""
    settled: asyncio.Event = field(default_factory=asyncio.Event)

    def crashed(self, served_s: float) -> float | None:
        """Seconds until the next start; None to give up: nothing is to be hoped for after several quick crashes.

        Args:
            served_s: How long the process served; 0 when it never listened.
        """
        self.crashes = 1 if served_s >= _STEADY_S else self.crashes + 1
        self.quick = self.quick + 1 if served_s < _QUICK_S else 0
        if self.quick >= _GIVE_UP_AFTER:
            return None
        return min(_FIRST_PAUSE_S * 2.0 ** (self.crashes - 1), _LONGEST_PAUSE_S)


class LlamaCppHub(ResourceHub[LlamaCppOptions]):
    """Keeps the processes of its options running: one that ends is started anew, after a pause that grows.

    Args:
        options: Checked already; None for the defaults.
        name: As in the configuration.
    """

    kind = "llamacpp"

    def __init__(self, options: LlamaCppOptions | None = None, *, name: str = "") -> None:
        super().__init__(options or LlamaCppOptions(), name=name)
        self._seats: dict[str, _Seat] = {}
        self._upstream = Upstream()

    @property
    def creates(self) -> bool:
        """Always."""
        return True

    async def open(self) -> None:
        """Start all processes, and wait until each listens or has failed.

        Raises:
            ModelError: A model's file is not there, or none of the processes starts.
        """
        await self._upstream.open()
        files = await asyncio.to_thread(lambda: [locate(model) for model in self.options.models])
        for model, path in zip(self.options.models, files, strict=True):
            for number in range(model.instances):
                seat = self._seat(model, path, number)
                self._seats[seat.instance.id] = seat
        for seat in self._seats.values():
            self.publish(seat.instance, State.STARTING)
            name = f"keeper of {seat.instance.endpoint}"
            seat.keeper = asyncio.create_task(self._keep(seat), name=name)
        await asyncio.gather(*(seat.settled.wait() for seat in self._seats.values()))
        if all(seat.child is None for seat in self._seats.values()):
            raise ModelError(next(seat.reason for seat in self._seats.values()))

    def _seat(self, model: ModelOptions, path: Path, number: int) -> _Seat:
        name = name_of(model)
        endpoint = f"llamacpp://{self.name}/{name}/{number}"
        has = frozenset((models.capability(name),))
        instance = ResourceInstance(
            id=instance_id(self.kind, endpoint),
            hub=self.name,
            kind=self.kind,
            endpoint=endpoint,
            offers=(("openai", _NOWHERE),),
            ownership=Ownership.MANAGED,
            capabilities=has,
            warm=has,
            max_concurrent=model.slots,
            details={"models": {models.canonical(name): entry_of(name, path)}},
        )
        settings = Settings(
            path=str(path),
            name=name,
            parent=os.getpid(),
            slots=model.slots,
            context=model.context,
            threads=model.threads or self._threads(),
            gpu_layers=model.gpu_layers,
            embeddings=model.embeddings,
            calm=model.path == PACKAGED,
        )
        return _Seat(instance, settings, path)

    def _threads(self) -> int:
        """An equal share of the cores for each process."""
        processes = sum(model.instances for model in self.options.models)
        return max(1, (os.cpu_count() or 1) // processes)

    async def reconfigure(self, options: LlamaCppOptions) -> bool:
        """Take other options, unless they change what is served: that needs a restart of the hub."""
        if options.models != self.options.models:
            return False
        self.options = options
        return True

    # -- keeping them running ----------------------------------------------------------------------------------

    async def _keep(self, seat: _Seat) -> None:
        try:
            pause_s: float | None = 0.0
            while pause_s is not None:
                await asyncio.sleep(pause_s)
                pause_s = seat.crashed(await self._serve(seat))
                self._ended(seat, pause_s)
        finally:
            child, seat.child = seat.child, None
            if child is not None:
                await child.stop()

    async def _serve(self, seat: _Seat) -> float:
        """One process, from its start to its end. The seconds it served."""
        try:
            seat.child = child = await Child.start(seat.settings, timeout_s=self.options.start_timeout_s)
        except (ModelError, OSError) as error:
            seat.reason = str(error)
            return 0.0
        finally:
            # Whoever waits for the hub to open learns of a failure as soon as there is one.
            if seat.child is None:
                seat.settled.set()
        await self._up(seat, child)
        began = time.monotonic()
        status = await child.wait()
        served_s = time.monotonic() - began
        await child.stop()
        seat.child = None
        seat.reason = f"process {child.pid} ended with status {status}"
        return served_s

    async def _up(self, seat: _Seat, child: Child) -> None:
        channel = HttpChannel(child.url)
        entry = await self._described(seat, channel)
        details = {"models": {models.canonical(seat.settings.name): entry}, "pid": child.pid}
        seat.instance = seat.instance.changed(offers=(("openai", channel),), details=details, handle=child)
        self.publish(seat.instance, State.READY)
        seat.settled.set()

    async def _described(self, seat: _Seat, channel: HttpChannel) -> dict[str, Any]:
        """How the model is listed, with what the server knows of it."""
        parameters = None
        try:
            listed = (await self._upstream.request(channel, "GET", "/v1/models")).json()
            parameters = int(listed["data"][0]["meta"]["n_params"])
        except (InstanceFailure, LookupError, TypeError, ValueError) as error:
            logger.debug("%s says nothing of its size: %s", seat.instance.endpoint, error)
        return await asyncio.to_thread(entry_of, seat.settings.name, seat.path, parameters)

    def _ended(self, seat: _Seat, pause_s: float | None) -> None:
        """Say so, and whether somebody may wait for the next."""
        logger.warning("%s: %s", seat.instance.endpoint, seat.reason)
        if pause_s is None:
            seat.reason = f"{seat.reason}; {seat.quick} times in a row"
            self.report_down(seat.instance.id, seat.reason)
            return
        seat.instance = seat.instance.changed(
            generation=seat.instance.generation + 1, offers=(("openai", _NOWHERE),), handle=None
        )
        self.publish(seat.instance, State.STARTING)

    # -- health ------------------------------------------------------------------------------------------------

    async def check(self, instance: ResourceInstance) -> ResourceInstance:
        """Ask the process.

        Raises:
            InstanceFailure: There is none, or it is not well.
        """
        seat = self._seats[instance.id]
        if seat.child is None or not seat.child.url:
            raise InstanceFailure(FailureKind.REFUSED, seat.reason or "no process", started=False)
        await self._upstream.request(HttpChannel(seat.child.url), "GET", "/health")
        return seat.instance

    async def retire(self, instance: ResourceInstance) -> None:
        """End one process for good."""
        await self._end(self._seats[instance.id])

    async def close(self) -> None:
        """End all processes."""
        await asyncio.gather(*(self._end(seat) for seat in self._seats.values()))
        await self._upstream.close()

    @staticmethod
    async def _end(seat: _Seat) -> None:
        if seat.keeper is not None:
            seat.keeper.cancel()
            await asyncio.gather(seat.keeper, return_exceptions=True)
