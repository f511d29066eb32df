"""A run by pytest within the command: how it ends when it is told to, or when its own end fails."""

import subprocess
import sys
from pathlib import Path

import pytest

# A process of its own, as signals are a process's; the suite's pytest plugin and its test are the real ones, the server is not.
PROGRAM = """
import os, signal, sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
import anyio
from bridge.config import Handler
from bridge.errors import HostError
from bridge.testing.conformance import plugin
from bridge.testing.conformance.report import as_text
from bridge.testing.conformance.results import Outcome, Report, Result
from bridge.testing.conformance.session import run
from bridge.testing.conformance.target import Target

signals = [getattr(signal, name) for name in sys.argv[2].split()]
again = signal.SIGTERM in signals
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell starts what it puts into the background

class Suite:
    report = Report("mine", "p", "1", "/x", "s", "h")

    def run(self, spec):
        if signals:
            anyio.run(self.told)
        result = Result(spec.name, spec.group, spec.purpose, spec.source, Outcome.PASSED, 0.0)
        self.report = replace(self.report, results=(*self.report.results, result))
        return result

    async def told(self):
        try:
            for number in signals:
                os.kill(os.getpid(), number)
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(lambda: os.kill(os.getpid(), signals[-1] if again else 0))
                print("cleaned up")

@contextmanager
def conformance(target):
    suite = Suite()
    try:
        yield suite
    finally:
        suite.report = replace(suite.report, left_behind=("process: 7 sleep",))
    if sys.argv[3:]:
        raise HostError("the cgroup is in use")

plugin.conformance = conformance
chosen = {"only": ["exit-codes", "pod-lifecycle"], "skip": [], "quick": False}
report = run(Target("mine", Handler(plugin="p")), **chosen, tell=print, root=Path(sys.argv[1]))
print(as_text(report))
assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
"""


def run(root: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(root), *words], capture_output=True, text=True, timeout=120, check=False, env=_environment()
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _environment() -> dict[str, str]:
    return {"PYTHONPATH": ":".join(filter(None, sys.path)), "PATH": "/usr/bin:/bin"}


@pytest.mark.parametrize("signals", ["SIGTERM", "SIGTERM SIGTERM", "SIGINT"])
def test_a_signal_ends_the_run_with_a_report(tmp_path: Path, signals: str) -> None:
    said = run(tmp_path, signals)
    assert "cleaned up" in said
    assert "The run broke off: it was interrupted\n" in said
    assert "Left behind when server and monitor had ended:\n  process: 7 sleep" in said
    assert "DOES NOT CONFORM: 0 specs" in said


def test_what_fails_at_the_end_of_an_interrupted_run_is_in_the_report(tmp_path: Path) -> None:
    assert "The run broke off: it was interrupted; its end failed: the cgroup is in use\n" in run(tmp_path, "SIGTERM", "badly")


def test_what_fails_at_the_end_of_a_whole_run_is_in_the_report(tmp_path: Path) -> None:
    said = run(tmp_path, "", "badly")
    assert "The run broke off: the cgroup is in use\n" in said
    assert "DOES NOT CONFORM: 2 specs" in said


def test_what_is_left_behind_is_a_fault_of_the_handler_and_not_of_the_run(tmp_path: Path) -> None:
    said = run(tmp_path, "")
    assert "process: 7 sleep" in said
    assert "broke off" not in said
    assert "DOES NOT CONFORM: 2 specs in 0 s: 2 passed" in said
