"""Where the gateway is, for the commands that talk to one."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import update_wrapper, wraps
from typing import TYPE_CHECKING, Any, Final

import click

from gleitzeit_core.cli.client import GatewayClient
from gleitzeit_core.cli.context import Invocation, pass_invocation
from gleitzeit_core.cli.output import note
from gleitzeit_core.errors import ConfigurationError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gleitzeit_core.cli.backend import Backend

_HOST: Final = "127.0.0.1"
_PORT: Final = 8484
_MAX_PORT: Final = 65535
_EVERYWHERE: Final = {"": _HOST, "0.0.0.0": _HOST, "::": "::1", "[::]": "::1"}  # noqa: S104 - to connect, not to listen


@dataclass(frozen=True, slots=True)
class Connection:
    """What ``--gateway`` and ``--key`` said.

    Args:
        url: Where the gateway is; empty for where the configuration says.
        key: An API key; empty for none.
    """

    url: str
    key: str = field(repr=False)

    def client(self, invocation: Invocation) -> GatewayClient:
        """A client for that gateway, whether it runs or not.

        Raises:
            UsageError: The address or the key is none.
            ConfigurationError: The address is the configuration's, and wrong.
        """
        url = self.url or _configured_url(invocation)
        try:
            return GatewayClient(url, self.key)
        except ValueError as error:
            raise click.UsageError(str(error)) from None

    @contextmanager
    def backend(self, invocation: Invocation, *, local: bool = False) -> Iterator[Backend]:
        """The gateway; or a manager in this process, if `local`, or if no gateway was named and none runs.

        Raises:
            GleitzeitError: Neither is to be had.
        """
        client = self.client(invocation)
        if not local and (self.url or client.listening()):
            yield client
            return
        if not local:
            note(f"no gateway at {client.url}; running in this process")
        from gleitzeit_core.cli.backend import LocalBackend, terminable  # noqa: PLC0415 - slow, and seldom needed

        with terminable(), LocalBackend(invocation.manager()) as backend:
            yield backend


def connection_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command ``--gateway`` and ``--key``; it gets them as the keyword argument `connection`."""

    @click.option(
        "--gateway",
        "url",
        default="",
        metavar="URL",
        help="The gateway to ask.  [default: the configuration's, http://127.0.0.1:8484]",
    )
    @click.option(
        "--key",
        default="",
        envvar="GLEITZEIT_KEY",
        metavar="KEY",
        help="An API key for it; safer in the environment, as GLEITZEIT_KEY.",
    )
    @wraps(function)
    def wrapped(*args: Any, url: str, key: str, **kwargs: Any) -> None:  # noqa: ANN401 - the command's own
        function(*args, connection=Connection(url, key), **kwargs)

    return wrapped


def asks_gateway(as_json: str = "") -> Callable[[Callable[..., None]], Callable[..., None]]:
    """For commands that ask a running gateway: they get a `GatewayClient` first, and have the options it takes.

    Args:
        as_json: The help for ``--json``, which comes as `as_json`; without it there is no such option.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        def asking(invocation: Invocation, /, *, connection: Connection, **options: Any) -> None:  # noqa: ANN401 - its own
            function(connection.client(invocation), **options)

        update_wrapper(asking, function)
        command = pass_invocation(asking)
        if as_json:
            command = click.option("--json", "as_json", is_flag=True, help=as_json)(command)
        return connection_options(command)

    return decorate


def _configured_url(invocation: Invocation) -> str:
    """From the section ``gateway``, which is read here without its plugin: a gateway elsewhere will do."""
    raw = invocation.raw()
    section = raw.data.get("gateway") or {}
    host, port = (section.get("host"), section.get("port")) if isinstance(section, Mapping) else (section, None)
    host, port = _HOST if host is None else host, _PORT if port is None else port
    if isinstance(host, str) and type(port) is int and 0 < port <= _MAX_PORT:
        host, scheme = _EVERYWHERE.get(host, host).strip("[]"), "https" if section.get("tls") else "http"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
    invocation.configuration()  # raises, with this and everything else that is wrong
    problem = Problem("gateway", "does not say where the gateway is", "use --gateway URL", raw.place(("gateway",)))
    raise ConfigurationError([problem])
