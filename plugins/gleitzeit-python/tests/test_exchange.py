"""One piece of work with an agent that does not behave: its owner gets an error that says whether it may have begun."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from gleitzeit_core.errors import FailureKind, InstanceFailure, InvalidRequest
from gleitzeit_core.resources import ChannelKind
from gleitzeit_python import exchange as module
from gleitzeit_python import runner
from gleitzeit_python.agent import frames
from gleitzeit_python.exchange import Exchange

if TYPE_CHECKING:
    from collections.abc import Callable

DONE = {"exit_status": 0, "clean": True, "alive": False}


class Scripted:
    """A channel whose other side answers each frame as a table says; with None it closes."""

    kind = ChannelKind.STREAM

    def __init__(self, answers: dict[int, list[bytes | None]] | None = None) -> None:
        self.answers = answers or {}
        self.sent: list[tuple[int, int, bytes]] = []
        self.closed = False
        self._decoder = frames.Decoder()
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def send(self, data: bytes) -> None:
        """Take frames, and have answers to them ready."""
        if self.closed:
            raise InstanceFailure(FailureKind.LOST, "gone")
        for found in self._decoder.feed(data):
            self.sent.append(found)
            for answer in self.answers.get(found[0], []):
                self._queue.put_nowait(answer)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """The next answer."""
        found = await self._queue.get()
        return (found or b"")[:max_bytes]

    async def aclose(self) -> None:
        """Close it."""
        self.closed = True
        self._queue.put_nowait(None)


def frame(kind: int, content: object = None, fence: int = 5) -> bytes:
    """One of the agent's."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode() if content is not None else b""
    return frames.frame(kind, fence, data)


async def work(channel: Scripted, timeout_s: float = 20.0) -> list[int]:
    """One exchange; the kinds of its frames."""
    found = []
    async with Exchange(channel, 5, timeout_s) as exchange:
        await exchange.begin({"code": "1"}, {"a": b"x"})
        while not found or found[-1] != frames.DONE:
            found.append((await exchange.next())[0])
    return found


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents that do not answer are given up soon."""
    monkeypatch.setattr(module, "_STOP_S", 0.05)
    monkeypatch.setattr(module, "_GRACE_S", 0.05)


async def test_from_begin_to_end() -> None:
    """Files first, then the work; frames of another fence are nobody's business here."""
    stale = frame(frames.STDOUT, b"stale", fence=4)
    channel = Scripted({frames.RUN: [stale + frame(frames.STARTED), stale + frame(frames.DONE, DONE)]})
    assert await work(channel) == [frames.STARTED, frames.DONE]
    assert [(kind, fence) for kind, fence, _ in channel.sent] == [(frames.FILE, 5), (frames.RUN, 5)]
    assert not channel.closed


async def test_long_answers_are_put_together() -> None:
    """A message in several frames is one."""
    whole = frames.frames(frames.RESULT, 5, b"x" * (2 << 20)) + frame(frames.DONE, DONE)
    channel = Scripted({frames.RUN: [whole[:100], whole[100:], None]})
    channel.receive = _whole(channel)  # type: ignore[method-assign]
    async with Exchange(channel, 5, 20.0) as exchange:
        await exchange.begin({}, {})
        assert await exchange.next() == (frames.RESULT, b"x" * (2 << 20))
        assert (await exchange.next())[0] == frames.DONE


def _whole(channel: Scripted) -> Callable[..., Any]:
    async def receive(max_bytes: int = 65536) -> bytes:  # noqa: ARG001 - a channel may give more at once
        return await channel._queue.get() or b""

    return receive


async def test_gone_before_it_was_sent() -> None:
    """Nothing has begun: it may go elsewhere."""
    channel = Scripted()
    channel.closed = True
    with pytest.raises(InstanceFailure) as caught:
        await work(channel)
    assert (caught.value.kind, caught.value.started) == (FailureKind.LOST, False)


@pytest.mark.parametrize(
    "answers", [[None], [frame(frames.STARTED), None], [b"\xff" * 20], [frame(frames.STARTED)[:5], None]]
)
async def test_gone_after_it_was_sent(answers: list[bytes | None]) -> None:
    """Nobody knows whether it has begun: it must not go elsewhere. The channel is closed."""
    channel = Scripted({frames.RUN: answers})
    with pytest.raises(InstanceFailure) as caught:
        await work(channel)
    assert (caught.value.kind, caught.value.started, channel.closed) == (FailureKind.LOST, True, True)


async def test_no_answer() -> None:
    """An agent that says nothing any more is given up when it should have ended the work itself."""
    channel = Scripted({frames.RUN: [frame(frames.STARTED)]})
    with pytest.raises(InstanceFailure, match="does not answer any more") as caught:
        await work(channel, timeout_s=0.05)
    assert (caught.value.started, channel.closed) == (True, True)


async def test_never_begun() -> None:
    """One that does not even say that it has begun is given up sooner, whatever time the work may take."""
    channel = Scripted()
    with pytest.raises(InstanceFailure, match="does not answer any more") as caught:
        await work(channel, timeout_s=1000.0)
    assert (caught.value.started, channel.closed) == (True, True)


async def test_refused() -> None:
    """What an agent refuses has not begun; if it is clean it is used again."""
    channel = Scripted({frames.RUN: [frame(frames.REFUSED, {"code": "cannot_start", "reason": "no", "clean": True})]})
    with pytest.raises(InstanceFailure, match="refuses: no") as caught:
        await work(channel)
    assert (caught.value.started, channel.closed) == (False, False)


@pytest.mark.parametrize("code", ["fence", "unclean"])
async def test_refused_and_not_clean(code: str) -> None:
    """If it does not say that it is clean, it is not."""
    channel = Scripted({frames.RUN: [frame(frames.REFUSED, {"code": code, "reason": "no"})]})
    with pytest.raises(InstanceFailure) as caught:
        await work(channel)
    assert (caught.value.started, channel.closed) == (False, True)


async def test_refused_for_the_callers_own_fault() -> None:
    """That is told as such."""
    channel = Scripted({frames.RUN: [frame(frames.REFUSED, {"code": "invalid", "reason": "no name", "clean": True})]})
    with pytest.raises(InvalidRequest, match="no name"):
        await work(channel)
    assert not channel.closed


@pytest.mark.parametrize("clean", [True, False])
async def test_cancelled(*, clean: bool) -> None:
    """The agent is asked to stop, and waited for; one that is not clean then is not used again."""
    done = {**DONE, "clean": clean}
    channel = Scripted({frames.RUN: [frame(frames.STARTED)], frames.CANCEL: [frame(frames.DONE, done)]})
    task = asyncio.create_task(work(channel))
    while not channel.sent:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert [kind for kind, _, _ in channel.sent] == [frames.FILE, frames.RUN, frames.CANCEL]
    assert channel.closed is not clean


async def test_cancelled_and_no_answer() -> None:
    """One that does not confirm it is closed: nobody knows what it does."""
    channel = Scripted()
    task = asyncio.create_task(work(channel))
    while not channel.sent:
        await asyncio.sleep(0)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    await asyncio.wait([task])
    assert (task.cancelled(), channel.closed) == (True, True)


async def test_cancelled_while_it_is_sent() -> None:
    """A frame that is cut cannot be taken back: the channel is closed."""
    channel = Scripted()
    never = asyncio.Event()
    channel.send = lambda _: never.wait()  # type: ignore[assignment, method-assign]
    task = asyncio.create_task(work(channel))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert (task.cancelled(), channel.closed) == (True, True)


# -- the start ---------------------------------------------------------------------------------------------------------------


class Starting(Scripted):
    """A channel to what may or may not become an agent."""

    def __init__(self, *answers: bytes | None) -> None:
        super().__init__()
        for answer in answers:
            self._queue.put_nowait(answer)

    async def send(self, data: bytes) -> None:
        """Take what is sent first."""
        self.program = data


HELLO = {
    "problem": "",
    "python": "3.11.2",
    "implementation": "CPython",
    "executable": "python3",
    "pid": 7,
    "abilities": {"separate_user": True, "kill_all": True, "verified_reset": True, "fork": True},
}


async def test_start() -> None:
    """The program, the options, and what the agent says of itself."""
    hello = frame(frames.HELLO, HELLO, fence=0)
    channel = Starting(hello[:10], hello[10:])
    said = await runner.start(channel, options=runner.AgentOptions(user=(1, 2)))
    assert (said.python, said.pid, said.reusable) == ("3.11.2", 7, True)
    assert said.as_dict()["kill_all"] is True
    size = int.from_bytes(channel.program[:4], "big")
    assert channel.program[4 : size + 4] == runner.agent_source()
    ((kind, _, options),) = frames.Decoder().feed(channel.program[size + 4 :])
    assert (kind, json.loads(options)["user"]) == (frames.OPTIONS, [1, 2])


@pytest.mark.parametrize(
    ("answers", "kind"),
    [
        ((None,), FailureKind.LOST),
        ((b"bash: python3: not found" * 10,), FailureKind.SERVER_ERROR),
        ((frame(frames.HELLO, b"no JSON"),), FailureKind.SERVER_ERROR),
        ((frame(frames.HELLO, {}),), FailureKind.SERVER_ERROR),
        ((), FailureKind.TIMEOUT),
    ],
)
async def test_start_of_what_is_no_agent(answers: tuple[bytes | None, ...], kind: FailureKind) -> None:
    """It is said how it failed, and that nothing has begun."""
    with pytest.raises(InstanceFailure) as caught:
        await runner.start(Starting(*answers), timeout_s=0.1)
    assert (caught.value.kind, caught.value.started) == (kind, False)


async def test_start_of_an_agent_that_cannot_work() -> None:
    """It says why, in its own words."""
    hello = frame(frames.HELLO, {**HELLO, "problem": "no module"}, fence=0)
    with pytest.raises(InstanceFailure, match=r"^no module$") as caught:
        await runner.start(Starting(hello))
    assert (caught.value.kind, caught.value.started) == (FailureKind.SERVER_ERROR, False)


def test_command() -> None:
    """An isolated interpreter that takes its program from standard input."""
    assert runner.command("py", "x") == ["py", "-I", "-u", "-c", runner.BOOTSTRAP, "x"]
