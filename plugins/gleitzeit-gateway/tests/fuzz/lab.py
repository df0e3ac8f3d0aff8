"""What the fuzzers share: live servers and gateways beside a test that is no coroutine, and what every answer must be."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final, Self

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from gleitzeit_core.config import check_configuration, read_configuration
from gleitzeit_core.manager import ResourceManager
from gleitzeit_gateway.testing import RunningGateway
from gleitzeit_ollama.testing import OllamaServer

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType

    from gleitzeit_core.plugins import PluginHost
    from gleitzeit_gateway.testing import Answered

LIMIT_S: Final = 30
MESSAGES: Final = [{"role": "user", "content": "hi"}]


class Lab:
    """Live servers and gateways on a loop in a thread of its own, for tests that are no coroutines.

    Args:
        plugins: What is installed.
    """

    def __init__(self, plugins: PluginHost) -> None:
        self._plugins, self._stack = plugins, AsyncExitStack()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)

    def __enter__(self) -> Self:
        """Start the loop."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop what was started, and the loop."""
        try:
            self.run(self._stack.aclose())
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()
            self.loop.close()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:  # noqa: ANN401 - what the coroutine returns
        """Do something on the loop."""

        async def bounded() -> Any:  # noqa: ANN401 - the same
            async with asyncio.timeout(LIMIT_S):
                return await work

        return asyncio.run_coroutine_threadsafe(bounded(), self.loop).result()

    def server(self, **options: Any) -> OllamaServer:  # noqa: ANN401 - the server's own
        """A stand-in that runs."""

        async def start() -> OllamaServer:
            return await self._stack.enter_async_context(OllamaServer(**options))

        found: OllamaServer = self.run(start())
        return found

    def gateway(self, url: str, **instance: object) -> RunningGateway:
        """A gateway over one server."""
        hub = {"type": "ollama", "instances": [{"url": url, **instance}]}
        data = {"hubs": {"lan": hub}, "routes": [{"methods": ["*"]}], "gateway": {"port": 0, "access_log": False}}
        manager = ResourceManager(
            check_configuration(read_configuration(None, environ={}, overrides=data), self._plugins), self._plugins
        )

        async def start() -> RunningGateway:
            return await self._stack.enter_async_context(RunningGateway(manager))

        found: RunningGateway = self.run(start())
        return found


def shown(record: logging.LogRecord) -> str:
    """All that a record says."""
    return logging.Formatter("%(name)s: %(message)s").format(record)


def examples(count: int, *, full: int) -> Callable[[Any], Any]:
    """So many examples, always the same ones; in long runs others each time, and more."""
    # As the fixture `full_size`, which comes too late for this.
    full_size = os.environ.get("GLEITZEIT_FULL_SIZE", "") not in {"", "0"}
    return settings(
        max_examples=full if full_size else count,
        derandomize=not full_size,
        deadline=None,
        report_multiple_bugs=False,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def check_envelope(path: str, answered: Answered) -> None:
    """An error of the API that `path` belongs to, and in no case one of ours."""
    assert answered.headers.get("X-Gleitzeit-Error") != "internal", answered
    assert answered.headers["Content-Type"].startswith("application/json"), answered
    body = answered.json
    if path.startswith("/v1/messages"):
        assert body["type"] == "error"
        assert isinstance(body["error"]["message"], str)
    elif path == "/rpc":
        assert isinstance(body["error"]["code"], int)
    elif path.startswith(("/v1/", "/admin/")):
        assert isinstance(body["error"]["message"], str)
    else:
        assert isinstance(body["error"], str)


def check_answer(path: str, answered: Answered) -> None:
    """A whole answer, one that says that it broke off, or an error."""
    assert 200 <= answered.status < 600
    if answered.status >= 400:
        check_envelope(path, answered)
        assert answered.complete
    if path == "/rpc" and answered.body:
        assert b'"code":-32603' not in answered.body, answered
    if not answered.complete:
        # In mid-answer: the last thing said is an error.
        last = [line for line in answered.body.splitlines() if line.strip()][-1]
        assert json.loads(last.removeprefix(b"data: "))["error"], answered


async def send(gateway: RunningGateway, path: str, body: bytes) -> Answered:
    """Ask, and see that nothing is left of it."""
    answered = await gateway.ask(path, body, headers={"Content-Type": "application/json"})
    await gateway.until(lambda: (gateway.in_flight, gateway.waiting) == (0, 0))
    return answered


@st.composite
def broken(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes in which some have changed, are missing, are there twice, or come from elsewhere."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["cut", "flip", "insert", "drop", "repeat"]))
        if kind == "cut":
            del data[at:]
        elif kind == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "insert":
            data[at:at] = draw(
                st.sampled_from(
                    [b"\0", b"\xef\xbb\xbf", b"\xff", b"\xed\xa0\x80", b"{", b"]", b",", b"\n", b"\r\n\r\n"]
                )
            )
        elif kind == "drop":
            del data[at : at + draw(st.integers(1, 9))]
        else:
            data[at:at] = data[at : at + draw(st.integers(1, 40))]
    return bytes(data)
