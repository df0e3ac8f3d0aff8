"""Alice, who asks with her key, and the clock that her limits go by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from gleitzeit_gateway.testing import Answered, RunningGateway


KEY, ROOT_KEY = "alices-key-is-very-secret", "the-key-that-may-do-all"
ROOT: Final = {"name": "root", "key": ROOT_KEY, "admin": True}
AS_ALICE, AS_ROOT = {"Authorization": f"Bearer {KEY}"}, {"Authorization": f"Bearer {ROOT_KEY}"}
MESSAGES: Final[list[Any]] = [{"role": "user", "content": "hi"}]
CHAT: Final = {"model": "smollm2", "messages": MESSAGES}


class Watch:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """What it shows."""
        return self.now


def alice(**options: object) -> list[dict[str, Any]]:
    """Her key, and one that may do all."""
    return [{"name": "alice", "key": KEY, **options}, ROOT]


def running(gateway: RunningGateway) -> int:
    """Requests of hers that count as running."""
    return gateway.gateway.limits.of("alice").running


async def ask(gateway: RunningGateway, path: str = "/api/chat", body: object = None, **more: Any) -> Answered:  # noqa: ANN401 - of `ask`
    """Ask with her key; a chat, where nothing is said."""
    return await gateway.ask(path, {**CHAT, "stream": False} if body is None else body, headers=AS_ALICE, **more)


async def rpc(gateway: RunningGateway, *methods: str, batch: bool = False, **more: object) -> Answered:
    """Call methods with her key, as one call or as a batch."""
    calls = [
        {"jsonrpc": "2.0", "id": n, "method": method, "params": CHAT if method == "llm/chat" else {}, **more}
        for n, method in enumerate(methods)
    ]
    return await ask(gateway, "/rpc", calls if batch else calls[0])
