"""``python -m tests.fuzz TARGET [libFuzzer's arguments] [DIRECTORY]``: guided by coverage, by atheris.

``tests/unit/images/test_fuzz.py`` does so for a fixed number of rounds; for longer: ``-runs=10000000``.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).parent / "corpus"


def main() -> None:
    """Fuzz until it crashes or libFuzzer's limits are reached. New inputs go to the directory named first, or to one of their own."""
    atheris: Any = importlib.import_module("atheris")  # has no wheel for some machines
    with atheris.instrument_imports(include=["bridge.images"]):
        targets = importlib.import_module("tests.fuzz.targets").TARGETS
    if len(sys.argv) < 2 or sys.argv[1] not in targets:
        sys.exit(f"usage: python -m tests.fuzz {'|'.join(targets)} [-runs=N] [DIRECTORY]")
    name = sys.argv.pop(1)
    places = [argument for argument in sys.argv[1:] if not argument.startswith("-")] or [tempfile.mkdtemp(prefix="fuzz-")]
    options = [argument for argument in sys.argv[1:] if argument.startswith("-")]
    atheris.Setup([sys.argv[0], *options, *places, str(CORPUS / name)], targets[name])
    atheris.Fuzz()


main()
