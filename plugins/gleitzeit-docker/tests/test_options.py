"""Options and profiles: what is refused, and what containers are told."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from gleitzeit_docker.address import from_environment
from gleitzeit_docker.containers import agent_options, config
from gleitzeit_docker.options import DockerOptions
from gleitzeit_docker.profiles import AGENT_CAPABILITIES, BUILT_IN

if TYPE_CHECKING:
    from pathlib import Path

SERVER = {"api": "ollama", "port": 11434, "network": "bridge"}


def checked(data: dict[str, Any], **context: Any) -> DockerOptions:  # noqa: ANN401 - as pydantic has it
    """As a configuration is checked."""
    return DockerOptions.model_validate(data, context=context)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"profile": "sandbxed"}, "unknown profile 'sandbxed'; known: .*sandboxed"),
        ({"profiles": {"trusted": {}}}, "must not redefine trusted"),
        ({"profiles": {"mine": {"base": "none"}}}, "trusted"),
        ({"profiles": {"mine": {"memry": "1g"}}}, "memry"),
        ({"memory": "lots"}, "a size is a number of bytes"),
        ({"memory": "1k"}, "greater than or equal to 6291456"),
        ({"memory": -1}, "greater than or equal"),
        ({"memory": "9" * 400 + "g"}, "less than or equal"),
        ({"shm": 2**62}, "less than or equal"),
        ({"cpus": 0}, "greater than 0"),
        ({"pids": 1}, "greater than or equal to 4"),
        ({"network": "host"}, "shares no network with the host"),
        ({"network": "container:other"}, "shares no network"),
        ({"capabilities": ["ALL"]}, "never ALL"),
        (
            {"capabilities": ["KILL", "cap_setuid"]},
            "needs the capabilities CHOWN, DAC_OVERRIDE, FOWNER, SETGID; or set",
        ),
        ({"tmpfs": {"tmp": "1m"}}, "no directory that can be mounted"),
        ({"tmpfs": {"/srv/../etc": "1m"}}, "no directory that can be mounted"),
        ({"seccomp": "/no/such/file"}, "is no seccomp profile"),
        ({"engines": ["http://host"]}, "must begin with unix://, tcp://, ssh://"),
        ({"engines": ["tcp://host"]}, "needs a port"),
        ({"engines": ["unix://host/path"]}, "needs a path"),
        ({"engines": ["ssh://"]}, "names no host"),
        ({"engines": ["tcp://a:1", "tcp://a:1"]}, "twice"),
        ({"engines": [{"url": "tcp://a:1", "name": "tcp://b:1"}, "tcp://b:1"]}, "twice"),
        ({"engines": ["ssh://a:99999"]}, "(?i)port"),
        ({"engines": [{"url": "ssh://a", "published_at": "http://a"}]}, "pattern"),
        ({"engines": [{"url": "ssh://a", "tls": {}}]}, "'tls' is for URLs"),
        ({"engines": [{"url": "tcp://a:1", "tls": {"ca": "/no/such"}}]}, "no such file"),
        ({"api": "ollama"}, "needs 'port'"),
        ({"api": "ollama", "port": 1}, "set network: bridge"),
        ({**SERVER, "engines": ["tcp://far:2375"]}, "needs 'published_at'"),
        ({"port": 1}, "has no port"),
        ({"max_concurrent": 2}, "one user at a time"),
        ({"environment": {"A=B": "x"}}, "no environment can have"),
        ({"health_path": "health"}, "pattern"),
        ({"min_total": 5, "max_total": 4}, "min_total must not be above"),
    ],
    ids=lambda value: json.dumps(value)[:50] if isinstance(value, dict) else "",
)
def test_what_is_wrong_is_refused(data: dict[str, Any], reason: str) -> None:
    """At check, before anything starts, with a sentence that says why."""
    with pytest.raises(ValidationError, match=reason):
        checked(data)


@pytest.mark.parametrize(
    ("source", "allowed", "reason"),
    [
        ("/srv/data", [], "not in or below any of 'allowed_volumes'"),
        ("/srv/data", ["/srv/dat"], "not in or below"),
        ("/srv/data/../../etc", ["/srv/data"], r"without '\.\.'"),
        ("srv", ["/srv"], "absolute"),
        ("/var/run/docker.sock", ["/"], "a container never gets that"),
        ("/run/docker.sock", ["/run"], "a container never gets that"),
        ("/var/run", ["/"], "a container never gets that"),
        ("/", ["/"], "a container never gets that"),
        ("/opt/engine.sock", ["/opt"], "a container never gets that"),
        ("/run/containerd", ["/run"], "a container never gets that"),
        (f"/run/user/{os.getuid()}", ["/run/user"], "a container never gets that"),
        ("/proc", ["/"], "a container never gets that"),
        ("//run/docker.sock", ["/"], "a container never gets that"),
        ("/proc/self/root/run", ["/"], "a container never gets that"),
    ],
)
def test_volumes_come_from_the_allow_list_and_are_never_the_engines_socket(
    source: str, allowed: list[str], reason: str
) -> None:
    """Nor a directory that holds it, whatever is allowed."""
    data = {"volumes": [{"source": source, "target": "/data"}], "allowed_volumes": allowed}
    with pytest.raises(ValidationError, match=reason):
        checked({**data, "engines": ["unix:///opt/engine.sock"]})


def test_a_link_to_the_socket_is_the_socket(tmp_path: Path) -> None:
    """It is looked at where it leads."""
    link = tmp_path / "harmless"
    link.symlink_to("/run/docker.sock")
    data = {"volumes": [{"source": str(link), "target": "/data"}], "allowed_volumes": [str(tmp_path)]}
    with pytest.raises(ValidationError, match="a container never gets that"):
        checked(data)


def test_the_socket_of_the_environments_engine_is_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which no option names."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///opt/engine.sock")
    data = {"volumes": [{"source": "/opt", "target": "/data"}], "allowed_volumes": ["/opt"]}
    with pytest.raises(ValidationError, match="a container never gets that"):
        checked(data)


def test_a_link_that_leads_to_itself_is_refused_like_any_other(tmp_path: Path) -> None:
    """By the list, in a sentence."""
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ValidationError, match="not in or below"):
        checked({"volumes": [{"source": str(tmp_path / "loop"), "target": "/data"}], "allowed_volumes": ["/srv"]})


def test_nothing_is_mounted_from_where_payloads_may_write() -> None:
    """One of them could put a link there, and the next container would see whatever that leads to."""
    writable = {"source": "/srv/work", "target": "/work", "read_only": False}
    below = {"source": "/srv/work/data", "target": "/data"}
    with pytest.raises(ValidationError, match="/srv/work/data is below /srv/work, where payloads"):
        checked({"volumes": [writable, below], "allowed_volumes": ["/srv"]})
    assert checked({"volumes": [{**writable, "read_only": True}, below], "allowed_volumes": ["/srv"]})


def test_a_volume_that_is_allowed_is_mounted_read_only(tmp_path: Path) -> None:
    """Unless it says otherwise."""
    volume = {"source": str(tmp_path / "below"), "target": "/data"}
    made = config(checked({"volumes": [volume], "allowed_volumes": [str(tmp_path)]}), {}, hub="x")
    (mount,) = made["HostConfig"]["Mounts"]
    assert mount == {"Type": "bind", "Source": volume["source"], "Target": "/data", "ReadOnly": True}


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_each_profile_limits_what_a_container_may_have(name: str) -> None:
    """Memory without swap, processes, files, capabilities and privileges, in all of them; only one has a network."""
    host = config(checked({"profile": name}), {}, hub="x")["HostConfig"]
    assert host["Memory"] == host["MemorySwap"] > 0
    assert host["PidsLimit"] > 0
    assert host["CapDrop"] == ["ALL"]
    assert tuple(host["CapAdd"]) == AGENT_CAPABILITIES
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["Privileged"] is False
    assert {limit["Name"] for limit in host["Ulimits"]} == {"core", "nofile"}
    assert (host["NetworkMode"] == "none") == (name != "trusted")
    assert host["ReadonlyRootfs"] == (name != "trusted")
    assert all("nosuid,nodev" in mount and "size=" in mount for mount in host["Tmpfs"].values())


def test_a_profile_of_ones_own_overrides_single_fields(tmp_path: Path) -> None:
    """The rest stays as in its base; and what the hub says stands above both."""
    (tmp_path / "strict.json").write_text('{"defaultAction": "SCMP_ACT_ERRNO"}')
    mine = {"base": "untrusted", "memory": "1.5g", "seccomp": "strict.json", "tmpfs": {"/work": "1m"}}
    options = checked({"profiles": {"mine": mine}, "profile": "mine", "pids": 99}, base_dir=tmp_path)
    used = options.profile_used()
    assert (used.memory, used.pids, used.single_use, used.cpus) == (
        1536 * 1024**2,
        99,
        True,
        BUILT_IN["untrusted"].cpus,
    )
    host = config(options, {}, hub="x")["HostConfig"]
    assert host["SecurityOpt"] == ["no-new-privileges", 'seccomp={"defaultAction": "SCMP_ACT_ERRNO"}']
    assert host["Tmpfs"] == {
        "/tmp": f"rw,nosuid,nodev,mode=1777,size={32 * 1024**2}",  # noqa: S108 - the container's
        "/work": f"rw,nosuid,nodev,mode=1777,size={1024**2}",
    }
    assert agent_options(options, "box").places == ("/work",)
    assert options.base_used() == "untrusted"


def test_a_directory_in_memory_of_ones_own_is_one_more() -> None:
    """A runner needs /tmp where nothing else can be written; only its size is anybody's choice."""
    sizes = checked({"tmpfs": {"/work/": "1m", "/tmp/": "2m"}}).profile_used().tmpfs  # noqa: S108 - the same
    assert sizes == {"/tmp": 2 * 1024**2, "/work": 1024**2}  # noqa: S108 - the container's


def test_payloads_are_never_root() -> None:
    """The agent makes them somebody else; where it is not root itself, it cannot, and need not."""
    assert agent_options(checked({}), "box").user == (65534, 65534)
    assert agent_options(checked({"user": "1000:1000"}), "box").user is None
    # Nobody knows from here who these are.
    for user in ("00:0", "toor"):
        assert agent_options(checked({"user": user}), "box").user == (65534, 65534)


def test_a_server_is_whom_its_image_says() -> None:
    """Root would be more than it was made for; unless the configuration says so."""
    assert "User" not in config(checked(SERVER), {}, hub="x")
    assert config(checked({**SERVER, "user": "1000"}), {}, hub="x")["User"] == "1000"
    assert config(checked({}), {}, hub="x")["User"] == "0:0"


def test_secrets_are_not_shown() -> None:
    """Neither by the options, nor by what a container of a runner is told."""
    options = checked({"environment": {"TOKEN": "hidden"}})
    assert "hidden" not in repr(options)
    assert "hidden" not in json.dumps(config(options, {}, hub="x"))
    assert agent_options(options, "box").environment == {"TOKEN": "hidden"}


def test_the_host_where_ports_are_reached_can_be_an_address_of_either_kind() -> None:
    """Written as a URL has it."""
    for given, written in (("far.example", "far.example"), ("10.0.0.5", "10.0.0.5"), ("fd00::1", "[fd00::1]")):
        options = checked({"engines": [{"url": "tcp://far:2375", "published_at": given}]})
        assert options.engines_used()[0][1].published_at == written


def test_a_server_gets_its_port_on_loopback_only() -> None:
    """On this machine; and its own command and environment."""
    made = config(checked({**SERVER, "command": ["serve"], "environment": {"A": "b"}}), {}, hub="x")
    assert made["HostConfig"]["PortBindings"] == {"11434/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}
    assert (made["Cmd"], made["Env"]) == (["serve"], ["A=b"])


def test_the_environment_names_the_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As for Docker's own tools, TLS included."""
    for name in ("DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"):
        monkeypatch.delenv(name, raising=False)
    assert from_environment().url == "unix:///var/run/docker.sock"
    assert from_environment().published_at == "127.0.0.1"
    monkeypatch.setenv("DOCKER_HOST", "tcp://far:2376")
    assert from_environment().tls is None
    assert from_environment().published_at == ""
    with pytest.raises(ValidationError, match="needs 'published_at'"):
        checked(SERVER)
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path))
    tls = from_environment().tls
    assert tls is not None
    assert (tls.ca, tls.verify) == (str(tmp_path / "ca.pem"), True)


@pytest.mark.parametrize("url", ["foo", "http://far:2375", "tcp://far", "tcp://far:99999", "unix://no/host"])
def test_an_environment_that_names_no_engine_is_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """With the variable's name, where the configuration names none itself."""
    monkeypatch.setenv("DOCKER_HOST", url)
    with pytest.raises(ValidationError, match="DOCKER_HOST"):
        checked({})
    assert checked({"engines": ["tcp://far:2375"]}).engines_used()[0][0] == "tcp://far:2375"


def test_options_without_the_sdk() -> None:
    """A configuration is checked, and commands are listed, before anything heavy is imported."""
    import subprocess  # noqa: PLC0415 - only here
    import sys  # noqa: PLC0415 - only here

    code = "import gleitzeit_docker.options, gleitzeit_docker.plugin, gleitzeit_docker.hub, sys; print('docker' in sys.modules, 'requests' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False False\n"
