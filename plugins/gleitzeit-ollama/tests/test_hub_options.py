from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from gleitzeit_core.cli.views import show_configuration
from gleitzeit_core.errors import ConfigurationError
from gleitzeit_core.manager import ResourceManager
from gleitzeit_ollama.options import OllamaOptions, checked_options

if TYPE_CHECKING:
    from pathlib import Path

KEY = "sk-open-sesame"


def _problems(**options: object) -> str:
    """What is said about a hub with these options, in a whole configuration."""
    hubs = {"lan": {"type": "ollama", **options}}
    with pytest.raises(ConfigurationError) as caught:
        ResourceManager.from_config(overrides={"hubs": hubs})
    return str(caught.value)


def test_without_options_it_discovers() -> None:
    """Default options discover on the usual ports, and name no server."""
    options = OllamaOptions()
    assert options.discover
    assert options.instances == []
    assert options.discover_ports == [11434, 11435, 11436, 11437, 11438, 11439]
    assert checked_options({"discover_ports": [9000]}).discover


def test_with_instances_it_does_not_discover_unless_told() -> None:
    """Naming servers means these servers; `discover: true` adds those of this machine."""
    assert not checked_options({"instances": ["gpu1"]}).discover
    assert checked_options({"instances": ["gpu1"], "discover": True}).discover


def test_a_url_alone_is_an_instance() -> None:
    """The short form is the long one with its defaults."""
    short, long = checked_options({"instances": ["gpu1:11434", {"url": "http://gpu2:11434/"}]}).instances
    assert (short.url, long.url) == ("http://gpu1:11434", "http://gpu2:11434")
    assert short.model_copy(update={"url": long.url}) == long
    assert (short.weight, short.max_concurrent, short.probe, short.models) == (1.0, 4, True, [])


def test_the_schema_has_both_forms() -> None:
    """Editors that check a configuration against the schema accept a URL alone."""
    items = OllamaOptions.model_json_schema()["properties"]["instances"]["items"]
    assert {"type": "string"} in items["anyOf"]
    assert any("InstanceOptions" in form.get("$ref", "") for form in items["anyOf"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"instances": ["http://gpu1/v1"]}, "hubs.lan.instances[0]: must end after host and port"),
        ({"instances": [{"url": "ftp://x"}]}, "hubs.lan.instances[0].url: must begin with http:// or https://"),
        ({"instances": [{"weight": 2}]}, "hubs.lan.instances[0].url: is missing"),
        ({"instances": [7]}, "hubs.lan.instances[0]: must be a mapping"),
        ({"instances": "http://gpu1"}, "hubs.lan.instances: must be a list"),
        (
            {"instances": [{"url": "a", "weigth": 2}]},
            "hubs.lan.instances[0].weigth: unknown key (did you mean 'weight'",
        ),
        ({"instances": [{"url": "a", "weight": 0}]}, "hubs.lan.instances[0].weight: must be above 0"),
        ({"instances": [{"url": "a", "weight": "inf"}]}, "hubs.lan.instances[0].weight: must be a finite number"),
        ({"instances": [{"url": "a", "max_concurrent": 0}]}, "max_concurrent: must be at least 1"),
        ({"instances": [{"url": "a", "tags": [""]}]}, "hubs.lan.instances[0].tags[0]"),
        ({"instances": [{"url": "a", "probe": False}]}, "'probe: false' needs 'models'"),
        ({"instances": [{"url": "http://a", "tls": {"verify": False}}]}, "'tls' needs a URL that begins with https://"),
        ({"instances": [{"url": "https://a", "tls": {"ca": "no/such.pem"}}]}, "instances[0].tls.ca: no such file: "),
        ({"instances": ["localhost", "http://127.0.0.1:11434/"]}, "hubs.lan: lists one server twice"),
        ({"instances": [{"url": "a", "name": "x"}, {"url": "b", "name": "x"}]}, "hubs.lan: gives the name 'x' to"),
        ({"discover": False}, "hubs.lan: names no instances and does not discover any"),
        ({"discover_ports": [0]}, "hubs.lan.discover_ports[0]: must be at least 1"),
        ({"connect_timeout_s": 0}, "hubs.lan.connect_timeout_s: must be above 0"),
        ({"discovr": True}, "hubs.lan.discovr: unknown key (did you mean 'discover'?)"),
    ],
)
def test_wrong_options_are_told_with_their_path(options: dict[str, Any], message: str) -> None:
    """Each mistake is one line that names the place and says what is wrong."""
    assert message in _problems(**options)


@pytest.mark.parametrize(
    ("instance", "message"),
    [
        ({"headers": {"X Y": KEY}}, "'X Y' is no header's name"),
        ({"headers": {"Content-Length": KEY}}, "'Content-Length' is set for each request"),
        ({"headers": {"X-Key": f"{KEY}\r\nX-Evil: 1"}}, "'X-Key'"),
        ({"headers": {"Authorization": "Basic " + KEY}, "api_key": KEY}, "exclude each other"),
        ({"api_key": f"{KEY} and more"}, "api_key: the key has characters in it that no key has"),
        ({"api_key": ""}, "api_key: the key is empty or not set"),
        ({"url": f"http://user:{KEY}@gpu1"}, "must not hold a user or a password"),
    ],
)
def test_wrong_secrets_are_told_without_them(instance: dict[str, Any], message: str) -> None:
    """A message about a secret does not repeat it."""
    said = _problems(instances=[{"url": "gpu1", **instance}])
    assert message in said
    assert KEY not in said


def test_secrets_are_in_no_text() -> None:
    """Neither options nor a checked configuration give a key or a header's value away; requests carry them."""
    instance = {"url": "gpu1", "api_key": KEY, "headers": {"X-Team": f"{KEY}-too"}}
    options = checked_options({"instances": [instance]})
    manager = ResourceManager.from_config(overrides={"hubs": {"lan": {"type": "ollama", "instances": [instance]}}})
    shown = show_configuration(manager.config)
    dumped = f"{options.model_dump()} {options.model_dump_json()} {shown}"
    assert KEY not in f"{options!r} {options} {dumped} {manager!r} {manager.config!r}"
    assert shown["hubs"]["lan"]["instances"][0]["headers"] == {"X-Team": "***"}
    assert options.instances[0].sent_headers() == {"Authorization": f"Bearer {KEY}", "X-Team": f"{KEY}-too"}


def test_pydantics_own_errors_are_without_values() -> None:
    """Who builds options in a program and makes a mistake does not find a key in the traceback."""
    with pytest.raises(ValidationError) as caught:
        OllamaOptions.model_validate(
            {"instances": [{"url": "ftp://gpu1", "api_key": KEY, "headers": {"X-Key": [KEY]}}]}
        )
    assert "ftp" in str(caught.value)
    assert KEY not in str(caught.value)


def test_a_file_of_certificates_is_relative_to_the_configuration(tmp_path: Path) -> None:
    """`tls.ca` is found beside the file that names it, wherever the program was started."""
    (tmp_path / "ca.pem").write_text("")
    config = tmp_path / "gleitzeit.yaml"
    config.write_text("hubs: {lan: {type: ollama, instances: [{url: 'https://gpu1', tls: {ca: ca.pem}}]}}")
    options: Any = ResourceManager.from_config(config).config.hubs["lan"].options
    assert options.instances[0].tls.ca == tmp_path / "ca.pem"


def test_options_and_plugin_are_light() -> None:
    """Checking a configuration and listing plugins load no HTTP client and none of this package's machinery."""
    code = (
        "import sys, gleitzeit_ollama.plugin, gleitzeit_ollama.options\n"
        "print([m for m in ('aiohttp', 'msgspec', 'rich', 'click', 'gleitzeit_ollama.hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_range_of_ports_has_two_ends() -> None:
    """One or three numbers are refused, with the place."""
    assert "ports[1]: is missing" in _problems(managed={"ports": [21100]})
    assert "ports: may have 2 entries at most" in _problems(managed={"ports": [1, 2, 3]})
