from __future__ import annotations

import socket

import pytest

from gleitzeit_ollama.addresses import (
    candidates,
    from_ollama_host,
    host_and_port,
    is_loopback,
    normalised,
    without_aliases,
)
from gleitzeit_ollama.discovery import is_own_address


@pytest.mark.parametrize(
    ("value", "url"),
    [
        # As Ollama's own programs read it.
        ("", "http://127.0.0.1:11434"),
        ("1.2.3.4", "http://1.2.3.4:11434"),
        ("1.2.3.4:1234", "http://1.2.3.4:1234"),
        ("example.com", "http://example.com:11434"),
        ("example.com:1234", "http://example.com:1234"),
        ("[::1]", "http://[::1]:11434"),
        ("::1", "http://[::1]:11434"),
        ("[::1]:1337", "http://[::1]:1337"),
        (" 1.2.3.4 ", "http://1.2.3.4:11434"),
        ('"1.2.3.4"', "http://1.2.3.4:11434"),
        (' " 1.2.3.4 " ', "http://1.2.3.4:11434"),
        ("'1.2.3.4'", "http://1.2.3.4:11434"),
        ("http://1.2.3.4:4321", "http://1.2.3.4:4321"),
        ("https://1.2.3.4:4321", "https://1.2.3.4:4321"),
        ("https://example.com/ollama/", "https://example.com/ollama"),
        ("http://1.2.3.4/", "http://1.2.3.4"),
        ("1.2.3.4:", "http://1.2.3.4:11434"),
        # With a scheme the port is the scheme's, which goes without saying.
        ("http://1.2.3.4", "http://1.2.3.4"),
        ("http://1.2.3.4:80", "http://1.2.3.4"),
        ("https://1.2.3.4", "https://1.2.3.4"),
        ("https://1.2.3.4:443", "https://1.2.3.4"),
        # A port that is none counts as missing.
        ("example.com:66000", "http://example.com:11434"),
        ("example.com:-1", "http://example.com:11434"),
        ("https://example.com:port", "https://example.com"),
        # Where a server listens everywhere, it can be reached on loopback.
        (":1234", "http://127.0.0.1:1234"),
        ("0.0.0.0", "http://127.0.0.1:11434"),  # noqa: S104 - read, never bound
        ("0.0.0.0:1234", "http://127.0.0.1:1234"),
        ("http://0.0.0.0:1234", "http://127.0.0.1:1234"),
        ("[::]", "http://[::1]:11434"),
        ("[::]:1234", "http://[::1]:1234"),
        ("::", "http://[::1]:11434"),
    ],
)
def test_ollama_host_is_read_as_ollama_reads_it(value: str, url: str) -> None:
    """Every form of OLLAMA_HOST leads to the server that Ollama's own programs would talk to."""
    assert from_ollama_host(value) == url


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("unix:///run/ollama.sock", "begins with unix://"),
        (":0", "port 0"),
        ("http://user:pass@gpu1", "user or a password"),
        ("http://gpu1/?x=1", "query"),
        ("not a host", "neither an address nor a name"),
        ("a:b:c", "neither an address nor a name"),
    ],
)
def test_ollama_host_that_leads_nowhere_is_told(value: str, why: str) -> None:
    """A value that no HTTP server can be reached by says why, without a password."""
    with pytest.raises(ValueError, match=why) as caught:
        from_ollama_host(value)
    assert "pass@" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://gpu1:11434", "http://gpu1:11434"),
        ("http://gpu1:11434/", "http://gpu1:11434"),
        ("HTTP://GPU1:11434", "http://gpu1:11434"),
        ("gpu1", "http://gpu1:11434"),
        ("gpu1:9000", "http://gpu1:9000"),
        ("  gpu1  ", "http://gpu1:11434"),
        ("my_box.lan", "http://my_box.lan:11434"),
        ("http://gpu1", "http://gpu1"),
        ("https://gpu1:443/", "https://gpu1"),
        ("0.0.0.0:11434", "http://127.0.0.1:11434"),
        ("http://[::]:11434", "http://[::1]:11434"),
        ("[0:0:0:0:0:0:0:1]:80", "http://[::1]"),
        ("https://gpu1:65535", "https://gpu1:65535"),
    ],
)
def test_urls_have_one_form(text: str, url: str) -> None:
    """What means the same server is written the same, so that its id is the same everywhere."""
    assert normalised(text) == url
    assert normalised(url) == url


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "names no host"),
        ("http://", "names no host"),
        (":11434", "names no host"),
        ("ftp://gpu1", "must begin with http:// or https://"),
        ("unix:///run/x", "must begin with http:// or https://"),
        ("http://gpu1:11434/v1", "no path, query or fragment"),
        ("http://gpu1:11434?x=1", "no path, query or fragment"),
        ("http://gpu1:11434/#x", "no path, query or fragment"),
        ("http:/gpu1", "no path, query or fragment"),
        ("http://gpu1:0", "from 1 to 65535"),
        ("http://gpu1:65536", "from 1 to 65535"),
        ("http://gpu1:-1", "from 1 to 65535"),
        ("http://gpu1:", "from 1 to 65535"),
        ("http://gpu1:1e3", "from 1 to 65535"),
        ("http://user:sesame@gpu1", "user or a password"),
        ("http://gpu 1", "neither an address nor a name"),
        ("http://[::1]x", "neither an address nor a name"),
        ("http://-gpu1", "neither an address nor a name"),
        ("http://" + "x" * 254, "neither an address nor a name"),
    ],
)
def test_wrong_urls_are_refused(text: str, why: str) -> None:
    """A URL that cannot be a server's says what is wrong with it, and gives no password away."""
    with pytest.raises(ValueError, match=why) as caught:
        normalised(text)
    assert "sesame" not in str(caught.value)


def test_candidates_begin_with_ollama_host() -> None:
    """OLLAMA_HOST comes first, then both loopback addresses of every port; nothing twice."""
    assert candidates([11434, 11435], "http://127.0.0.1:11435") == (
        "http://127.0.0.1:11435",
        "http://127.0.0.1:11434",
        "http://[::1]:11434",
        "http://[::1]:11435",
    )
    assert candidates([], None) == ()


def test_the_names_of_loopback_are_one() -> None:
    """Whether it is called localhost, 127.0.0.1 or ::1 makes no difference; port, scheme and other hosts do."""
    same = {without_aliases(url) for url in ("http://localhost:1", "http://127.0.0.1:1", "http://[::1]:1")}
    assert len(same) == 1
    others = ("http://localhost:2", "https://localhost:1", "http://127.0.0.2:1", "http://gpu1:1")
    assert len(same | {without_aliases(url) for url in others}) == 5


def test_parts_of_a_url() -> None:
    """Host and port are told apart, with the scheme's port where none is written."""
    assert host_and_port("http://[::1]:9") == ("::1", 9)
    assert host_and_port("https://gpu1/ollama") == ("gpu1", 443)
    assert host_and_port("http://gpu1") == ("gpu1", 80)


def test_loopback_is_known_without_looking_it_up() -> None:
    """Addresses and the name localhost are; a name that could be anything is not."""
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.9.9.9", "::1")))
    assert not any(map(is_loopback, ("gpu1", "10.0.0.1", "::2", "")))


def test_own_addresses_are_told_from_others() -> None:
    """An address of this machine is its own; one of the documentation's is not, nor is what is no address."""
    assert is_own_address("127.0.0.1")
    assert not is_own_address("192.0.2.1")
    assert not is_own_address("nowhere")
    outward = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), 1, socket.AF_INET)}
    assert all(is_own_address(str(address)) for address in outward)
