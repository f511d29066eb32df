"""A fixed number of rounds with fixed seeds, by mutation and by atheris: what strangers write is read, or refused by a known error."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.fuzz.mutation import mutated
from tests.fuzz.targets import TARGETS, corpus

_ROUNDS = 3000


@pytest.mark.parametrize("target", TARGETS)
def test_a_fixed_number_of_rounds(target: str) -> None:
    run = TARGETS[target]
    for number, data in enumerate(mutated(corpus(target), _ROUNDS, seed=1)):
        try:
            run(data)
        except Exception as exc:
            exc.add_note(f"round {number} of {target}: {data[:2000]!r}")
            raise


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this machine")
@pytest.mark.parametrize("target", TARGETS)
def test_guided_by_coverage(target: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz", target, f"-runs={_ROUNDS}", "-seed=1", "-max_len=65536", "-rss_limit_mb=1024"]
    environment = {"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [*command, str(tmp_path)], capture_output=True, text=True, cwd=Path(__file__).parents[3], timeout=100, env=environment
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert f"Done {_ROUNDS} runs" in done.stderr


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_holds_what_is_accepted(target: str) -> None:
    """Mutations of what is refused at once would try nothing."""
    assert len(corpus(target)) >= 2


def test_the_mutations_are_not_all_refused() -> None:
    read = 0
    for data in mutated(corpus("tar"), 200, seed=2):
        try:
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                read += len(archive.getmembers()) > 0
        except (tarfile.TarError, ValueError, OverflowError, EOFError):
            continue
    assert read > 20
