"""From a container that was made to one that can be used: its runner has said hello, or its server answers."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from gleitzeit_core.errors import FailureKind, InstanceFailure
from gleitzeit_core.probes import HttpProbe
from gleitzeit_core.resources import HttpChannel
from gleitzeit_docker.containers import agent_options, published_port
from gleitzeit_docker.errors import DockerError, NotFound
from gleitzeit_docker.options import RUNNER
from gleitzeit_python.runner import start

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gleitzeit_core.resources import Channel, ResourceInstance
    from gleitzeit_docker.containers import Container
    from gleitzeit_docker.options import DockerOptions

logger = logging.getLogger(__name__)

_ASK_EVERY_S: Final = 0.1
_PROBE_S: Final = 5.0
_TOLD_S: Final = 1.0
_LAST_LINES: Final = 20
_LAST_LETTERS: Final = 2000


async def started(
    container: Container, coming: ResourceInstance, options: DockerOptions
) -> tuple[Channel, Mapping[str, Any]]:
    """Start a container that was made, and wait until what is in it can be used: its channel, and what is known of it.

    Raises:
        DockerError: The engine refuses.
        InstanceFailure: What is in it ends, or does not answer as it must.
    """
    if options.api != RUNNER:
        await container.engine.start(container.id)
        channel: Channel = await _served(container, coming, options)
        details: Mapping[str, Any] = {}
    else:
        channel, details = await _runs(container, options, coming.hub)
    if container.ended.done():
        raise await _failure(container)
    return channel, details


async def _runs(container: Container, options: DockerOptions, hub: str) -> tuple[Channel, Mapping[str, Any]]:
    engine = container.engine
    stream = container.stream = await engine.attach(container.id)
    await engine.start(container.id)
    try:
        hello = await start(stream, options=agent_options(options, hub), timeout_s=options.create_timeout_s)
    except InstanceFailure as failure:
        if stream.closed and not stream.log:
            # How it ended, such as for memory, the engine tells in a moment.
            await asyncio.wait((container.ended,), timeout=_TOLD_S)
        ended = container.ended.result() if container.ended.done() else ""
        message = "; ".join(filter(None, [failure.message, f"it said: {stream.log}" if stream.log else ended]))
        raise InstanceFailure(failure.kind, message, started=False) from failure
    return stream, {"runner": hello.as_dict()}


async def _served(container: Container, coming: ResourceInstance, options: DockerOptions) -> HttpChannel:
    engine, port = container.engine, options.port or 0
    try:
        published = published_port(await engine.inspect(container.id), port)
    except (LookupError, NotFound):
        # As a rule because it has ended, and is told of in a moment.
        await asyncio.wait((container.ended,), timeout=_PROBE_S)
        raise await _failure(container, f"port {port} is not published") from None
    channel = HttpChannel(f"http://{engine.address.published_at}:{published}")
    probed = coming.changed(offers=((options.api, channel),))
    while not container.ended.done():
        try:
            await probe(probed, options.health_path)
        except InstanceFailure as failure:
            logger.debug("%s does not answer yet: %s", container.name, failure)
        else:
            return channel
        await asyncio.wait((container.ended,), timeout=_ASK_EVERY_S)
    raise await _failure(container)


async def _failure(container: Container, why: str = "") -> InstanceFailure:
    """Why a container cannot be used: `why`, or why it has ended; with the last that a server wrote."""
    if container.ended.done():
        why = container.ended.result()
    said = ""
    if container.stream is None:
        try:
            written = await container.engine.call(lambda client: client.logs(container.id, tail=_LAST_LINES))
            said = written.decode(errors="replace").strip()[-_LAST_LETTERS:]
        except DockerError as error:
            logger.debug("%s: nothing is known of what it wrote: %s", container.name, error)
    return InstanceFailure(FailureKind.REFUSED, f"{why}; it said: {said}" if said else why, started=False)


async def probe(instance: ResourceInstance, path: str) -> None:
    """See whether a server answers.

    Raises:
        InstanceFailure: It does not, or not well, or not soon.
    """
    try:
        async with asyncio.timeout(_PROBE_S):
            await HttpProbe(type="http", path=path).examine(instance)
    except TimeoutError:
        raise InstanceFailure(FailureKind.TIMEOUT, f"{path} is not answered") from None
