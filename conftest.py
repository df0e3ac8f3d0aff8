"""What every test folder shares.

With GLEITZEIT_REQUIRE_ALL=1 nothing may be left out; with GLEITZEIT_FULL_SIZE=1 tests that can be large are.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

FULL_SIZE = os.environ.get("GLEITZEIT_FULL_SIZE", "") not in {"", "0"}
REQUIRE_ALL = os.environ.get("GLEITZEIT_REQUIRE_ALL", "") not in {"", "0"}

# A shell has what it starts in the background ignore Ctrl-C, and so would the programs that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says something of the machine only.
settings.register_profile("gleitzeit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("gleitzeit")


def _forbid_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn a skip into a failure; an expected failure is reported as a skip too, and stays."""
    if report.outcome != "skipped" or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"{reason}\nGLEITZEIT_REQUIRE_ALL is set: a skipped test is a failure"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Forbid skips of single tests."""
    report = yield
    if REQUIRE_ALL:
        _forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Forbid skips of whole files, as `pytest.importorskip` does."""
    report = yield
    if REQUIRE_ALL:
        _forbid_skip(report)
    return report


@pytest.fixture(scope="session")
def full_size() -> bool:
    """Whether a test that can be small or large is to be large, as `make test-faults` has it."""
    return FULL_SIZE


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for ``127.0.0.1`` and ``localhost``, with the authority that signed it, all in one file.

    Made anew each time: no key stands in the tree. A server loads it as its chain, a client as what it trusts.
    """
    import trustme  # noqa: PLC0415 - few tests need it

    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    file = tmp_path_factory.mktemp("tls") / "localhost.pem"
    parts = [issued.private_key_pem, *issued.cert_chain_pems, authority.cert_pem]
    file.write_bytes(b"".join(part.bytes() for part in parts))
    return file
