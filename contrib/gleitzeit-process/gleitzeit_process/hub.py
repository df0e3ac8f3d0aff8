"""The hub of processes: as many child processes that run Python as are wanted, within its bounds.

They are no sandbox. The code can do whatever the user can who runs Gleitzeit: read files, use the network, disturb
other processes, the runner's own included. For code that you trust as you trust Gleitzeit itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gleitzeit_core.resources import Ownership, ResourceInstance, instance_id
from gleitzeit_core.supply import SupplyHub
from gleitzeit_process.child import Child, PipeChannel
from gleitzeit_process.options import ProcessOptions
from gleitzeit_python.runner import API, AgentOptions

if TYPE_CHECKING:
    from gleitzeit_core.requests import Outcome
    from gleitzeit_core.supply_options import SupplyOptions


class ProcessHub(SupplyHub[ProcessOptions]):
    """See the module's text.

    Args:
        options: Checked already; None for the defaults.
        name: As in the configuration.
    """

    kind = "process"
    tenant_bound = True

    def __init__(self, options: ProcessOptions | None = None, *, name: str = "") -> None:
        super().__init__(options or ProcessOptions(), name=name)
        self._users: set[int] = set()

    @property
    def supply(self) -> SupplyOptions:
        """Its options have it."""
        return self.options

    def next(self, number: int) -> ResourceInstance:
        """The record of one to be created."""
        endpoint = f"process://{self.name}/{number}"
        return ResourceInstance(
            id=instance_id(self.kind, endpoint),
            hub=self.name,
            kind=self.kind,
            endpoint=endpoint,
            offers=((API, PipeChannel()),),
            ownership=Ownership.MANAGED,
            max_concurrent=1,
        )

    async def create(self, coming: ResourceInstance) -> ResourceInstance:
        """Start a process.

        Raises:
            InstanceFailure: It does not become ready.
            OSError: There is no such interpreter.
        """
        options, user = self.options, self._next_user()
        agent = AgentOptions(
            user=None if user is None else (user, user),
            environment=options.environment,
            preload=tuple(options.preload),
            limits=options.limits.model_dump(exclude_none=True),
            place=f"hubs.{self.name}.",
        )
        try:
            child, hello = await Child.start(
                options.python, agent, options.directory, timeout_s=options.create_timeout_s
            )
        except BaseException:
            self._users.discard(user or 0)
            raise
        details = {"runner": hello.as_dict(), "pid": child.pid, "trusted": options.reuse, "user": user}
        return coming.changed(offers=((API, child.channel),), details=details, handle=child)

    def _next_user(self) -> int | None:
        """A user that no other process of ours has."""
        first = self.options.first_user
        if first is None:
            return None
        user = next(number for number in range(first, first + len(self._users) + 1) if number not in self._users)
        self._users.add(user)
        return user

    async def check(self, instance: ResourceInstance) -> ResourceInstance:
        """Whether the process is there; one that has ended is replaced."""
        if instance.handle is not None and instance.handle.status is not None:
            self.replace(instance, f"its process has ended with status {instance.handle.status}")
        return instance

    async def reset(self, instance: ResourceInstance, outcome: Outcome) -> bool:  # noqa: ARG002 - see SupplyHub
        """The agent has cleaned up; whoever had reason to doubt it has closed the channel."""
        return not instance.handle.channel.closed

    async def destroy(self, instance: ResourceInstance) -> None:
        """End the process, and all that it has started."""
        await instance.handle.stop()
        self._users.discard(instance.details["user"] or 0)
