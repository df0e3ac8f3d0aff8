"""What this distribution adds: the hub type `docker`, and commands for its engines."""

from __future__ import annotations

from gleitzeit_core.hookspecs import CommandType, HubType, hookimpl


@hookimpl
def gleitzeit_register_hubs() -> list[HubType]:
    """The hub of containers."""
    return [
        HubType(
            name="docker",
            target="gleitzeit_docker.hub:DockerHub",
            options="gleitzeit_docker.options:DockerOptions",
            summary="containers on one or several Docker Engines: sandboxed Python, or any server",
        )
    ]


@hookimpl
def gleitzeit_register_commands() -> list[CommandType]:
    """What shows and prepares engines."""
    there = "gleitzeit_docker.commands"
    return [
        CommandType(name="docker", target=f"{there}:docker", summary="the engines of hubs: images and containers"),
        CommandType(name="docker images", target=f"{there}:images", summary="the images that hubs need, and where"),
        CommandType(name="docker pull", target=f"{there}:pull", summary="pull an image to the engines"),
        CommandType(name="docker build", target=f"{there}:build", summary="build an image for Python runners"),
        CommandType(name="docker ps", target=f"{there}:ps", summary="the containers of hubs, and who owns them"),
        CommandType(name="docker prune", target=f"{there}:prune", summary="remove what dead owners have left"),
    ]
