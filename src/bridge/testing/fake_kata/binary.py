"""Puts the fake where a handler can be pointed at: an executable file by the name of Kata's shim."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from bridge.testing.fake_kata import places


def install(directory: Path) -> Path:
    """Write ``containerd-shim-kata-v2`` into ``directory`` and return its path. It runs with this interpreter and its modules.

    To have something go wrong, give it the environment variable ``places.FAULTS_ENV`` (see ``places.fault``).
    """
    path = directory / places.SHIM
    python, modules = shlex.quote(sys.executable), shlex.quote(os.pathsep.join(entry for entry in sys.path if entry))
    command = f"exec {python} -m bridge.testing.fake_kata {shlex.quote(str(path))}"
    path.write_text(f'#!/bin/sh\nexport PYTHONPATH={modules} {places.PYTHON_ENV}={python}\n{command} "$@"\n')
    path.chmod(0o755)
    return path
