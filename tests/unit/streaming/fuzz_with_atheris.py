"""Feeds a target with atheris, which is guided by what the input reaches: ``python -m … TARGET [libFuzzer's arguments] [CORPUS]``.

``test_fuzz`` does so for a fixed number of rounds; for longer: ``-runs=10000000``.
"""

from __future__ import annotations

import importlib
import sys

import atheris


def main() -> None:
    """See above. Ends the process."""
    with atheris.instrument_imports(include=["bridge.streaming", "h11", "wsproto"]):
        targets = importlib.import_module("tests.unit.streaming.fuzz_targets")
    target = targets.TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
