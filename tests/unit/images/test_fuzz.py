"""Mutations of the fuzz corpus, a fixed number of rounds with fixed seeds: whatever strangers write is read or refused by a known error."""

from __future__ import annotations

import io
import tarfile

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
