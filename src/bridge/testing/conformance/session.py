"""A run of the suite by pytest inside this process, for the command line. Imports pytest, which is an extra."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

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
    interrupted: bool = False

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
        if call.when in ("collect", "setup", "teardown") and failure is not None:
            self.fault = _words(failure)

    def pytest_keyboard_interrupt(self) -> None:
        """A signal has ended the run."""
        self.interrupted = True

    def run(self, words: Sequence[str]) -> str:
        """Have pytest run the suite, and end it whatever happens; what is wrong with the run as a whole, in words."""
        code: int | pytest.ExitCode | None = None
        try:
            code = pytest.main([*words], plugins=[self])
        except KeyboardInterrupt:
            self.interrupted = True
        except Exception as exc:  # noqa: BLE001 - pytest lets out what the end of an interrupted run raises; the report comes all the same
            self.fault = self.fault or f"its end failed: {_words(exc)}"
        if self.interrupted:
            self.fault = "; ".join(filter(None, ["it was interrupted", self.fault]))
        return self.fault or ("" if self.report is not None else f"pytest ended with {code!r}")


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
        fault = session.run(words)
    if session.report is None:
        raise HostError(f"no spec could be run: {fault}")
    return replace(session.report, fault=fault)


def _words(failure: BaseException) -> str:
    return str(failure) if isinstance(failure, BridgeError) else repr(failure)


@contextmanager
def _alone() -> Iterator[None]:
    """No other pytest plugin has a say, and SIGTERM ends the run as SIGINT does: with the end of all that it has started."""
    before = os.environ.get(_NO_OTHERS)
    # Where a shell has put the run into the background SIGINT is ignored, and asyncio would not take it.
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _once_as_interrupt()}
    former = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    os.environ[_NO_OTHERS] = "1"
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        os.environ.pop(_NO_OTHERS) if before is None else os.environ.update({_NO_OTHERS: before})


def _once_as_interrupt() -> Callable[[int, FrameType | None], None]:
    """A handler that raises SIGINT, which asyncio turns into the cancellation of what runs: an exception out of nowhere breaks its loop.

    Only the first time: timeout(1) signals the process and then its group, and the second must not break off the cleaning up.
    """
    seen = False

    def handle(_number: int, _frame: FrameType | None) -> None:
        nonlocal seen
        if not seen:
            seen = True
            signal.raise_signal(signal.SIGINT)

    return handle
