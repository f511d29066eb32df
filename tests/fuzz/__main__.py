"""``python -m tests.fuzz TARGET [libFuzzer's arguments]``: coverage-guided, by atheris (``pip install atheris``)."""

from __future__ import annotations

import importlib
import sys
import tempfile
from typing import Any

from tests.fuzz.targets import CORPUS, TARGETS


def main() -> None:
    """Fuzz until it crashes or libFuzzer's limits are reached. New inputs go to the directory named first, or to one of their own."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: python -m tests.fuzz {'|'.join(TARGETS)} [-runs=N] [DIRECTORY]")
    atheris: Any = importlib.import_module("atheris")  # not among the development requirements: CI runs its rounds without it
    name = sys.argv.pop(1)
    atheris.instrument_all()
    places = [argument for argument in sys.argv[1:] if not argument.startswith("-")] or [tempfile.mkdtemp(prefix="fuzz-")]
    options = [argument for argument in sys.argv[1:] if argument.startswith("-")]
    atheris.Setup([sys.argv[0], *options, *places, str(CORPUS / name)], TARGETS[name])
    atheris.Fuzz()


main()
