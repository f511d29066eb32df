"""A run of the suite by pytest inside this process, for the command line. Imports pytest, which is an extra."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from bridge.errors import BridgeError, HostError
from bridge.testing.conformance.hooks import TARGET
from bridge.testing.conformance.results import Report, Result
from bridge.testing.conformance.target import Target

_SUITE = "bridge.testing.conformance.suite"
_PLUGIN = "bridge.testing.conformance.plugin"
_NO_OTHERS = "PYTEST_DISABLE_PLUGIN_AUTOLOAD"


@dataclass(eq=False)  # pytest keeps plugins in sets
class Session:
    """A pytest plugin that gives the suite its ``target`` and takes what it finds. ``tell`` is called with each result."""

    target: Target
    tell: Callable[[Result], None]
    report: Report | None = None
    fault: str = ""

    def pytest_configure(self, config: pytest.Config) -> None:
        """Say what is tested."""
        config.stash[TARGET] = self.target

    def pytest_conformance_result(self, result: Result) -> None:
        """A spec has ended."""
        self.tell(result)

    def pytest_conformance_report(self, report: Report) -> None:
        """The run has ended."""
        self.report = report

    def pytest_exception_interact(self, call: pytest.CallInfo[object]) -> None:
        """What is no result of a spec is a fault of the run: a server that does not start, a spec that there is not."""
        failure = call.excinfo.value if call.excinfo is not None else None
        if call.when in ("collect", "setup") and failure is not None:
            self.fault = str(failure) if isinstance(failure, BridgeError) else repr(failure)


def run(target: Target, *, only: Sequence[str], skip: Sequence[str], quick: bool, tell: Callable[[Result], None], root: Path) -> Report:
    """Run the chosen specs against ``target``. ``root``: an empty directory. Raises HostError when no spec could be run."""
    session = Session(target, tell)
    words = [
        "--pyargs",
        _SUITE,
        "-p",
        _PLUGIN,
        "-p",
        "no:terminal",
        "--capture=no",
        "-p",
        "no:cacheprovider",
        f"--rootdir={root}",
        "-c",
        os.devnull,
    ]
    words += [f"--conform-only={each}" for each in only] + [f"--conform-skip={each}" for each in skip]
    words += ["--conform-quick"] if quick else []
    with _alone():
        code = pytest.main(words, plugins=[session])
    if session.report is None:
        raise HostError(session.fault or f"the suite could not be run (pytest ended with {code!r})")
    interrupted = "it was interrupted" if code == pytest.ExitCode.INTERRUPTED else ""
    return replace(session.report, fault=session.fault or interrupted)


@contextmanager
def _alone() -> Iterator[None]:
    """No other pytest plugin has a say, and SIGTERM ends the run as SIGINT does: with the end of all that it has started."""
    before, handler = os.environ.get(_NO_OTHERS), signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ[_NO_OTHERS] = "1"
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
        os.environ.pop(_NO_OTHERS) if before is None else os.environ.update({_NO_OTHERS: before})
