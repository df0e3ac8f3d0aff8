"""``gleitzeit events``: what happens in a running gateway, as it happens."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click

from gleitzeit_core.cli.client import GatewayDown, GatewayError, understood
from gleitzeit_core.cli.commands import Command
from gleitzeit_core.cli.connection import asks_gateway
from gleitzeit_core.cli.output import note, write, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gleitzeit_core.cli.client import GatewayClient

_AGAIN_S: Final = 1.0
_PASSING: Final = ("incomplete", "gateway")
"""Codes of errors that a gateway that is started anew causes."""


@click.command(
    cls=Command,
    examples=(
        "gleitzeit events",
        "gleitzeit events --requests --json | jq -c 'select(.kind == \"request\") | .data'",
    ),
)
@click.option("--requests", is_flag=True, help="Tell of each finished request as well.")
@click.option("--once", is_flag=True, help="End when the connection ends, instead of connecting again.")
@asks_gateway("Print each as one line of JSON: kind, at (Unix time), data.")
def events(client: GatewayClient, *, requests: bool, once: bool, as_json: bool) -> None:
    """Follow what happens: instances that come, go and change, reloads, and requests if asked. Ctrl-C ends it."""
    print_all(client, requests=requests, as_json=as_json)
    connected = True
    while not once:
        if connected:
            note(f"the connection to {client.url} ended; trying again")
        time.sleep(_AGAIN_S)
        connected = False
        with suppress(GatewayDown):
            print_all(client, requests=requests, as_json=as_json, lenient=True)
            connected = True


def print_all(client: GatewayClient, *, requests: bool, as_json: bool, lenient: bool = False) -> None:
    """Print events until the connection ends.

    Args:
        client: Of the gateway.
        requests: Whether finished requests are among them.
        as_json: As lines of JSON.
        lenient: Whether one that breaks off before anything has come is as good as one that ends.

    Raises:
        GatewayDown: There is none.
        GatewayError: It is refused, or breaks off before anything has come.
    """
    any_came = lenient
    try:
        for event in client.events(requests=requests):
            any_came = True
            if as_json:
                write_json(event, indent=None)
                continue
            with understood(client.url):
                text = _line(event)
            write(text)
    except GatewayError as error:
        if error.code not in _PASSING or not any_came:
            raise


def _line(event: Mapping[str, Any]) -> str:
    at, data = datetime.fromtimestamp(event["at"]).astimezone(), event["data"]
    facts = " ".join(f"{name}={_short(value)}" for name, value in data.items() if value not in (None, "", [], {}))
    return f"{at:%H:%M:%S}  {event['kind']:<9} {facts}"


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ",".join(map(_short, value))
    return str(value)
