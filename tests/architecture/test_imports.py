"""The import contracts of pyproject.toml hold, and the monitor process imports as little as promised."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).parents[2]
PATHS = os.pathsep.join([str(TOP / "src"), *(str(TOP / "plugins" / name / "src") for name in ("runc", "gvisor", "kata"))])

LOADED = """
import sys
import bridge.__main__
import bridge.monitor.main
print("\\n".join(sorted({name.split(".")[0] for name in sys.modules if not name.startswith("_")})))
print("\\n".join(sorted(name for name in sys.modules if name.startswith("bridge."))))
"""


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": PATHS, "COLUMNS": "160"}
    return subprocess.run(argv, cwd=TOP, env=environment, capture_output=True, text=True, check=False)


def test_imports_point_inwards() -> None:
    result = run(sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache")
    assert result.returncode == 0, result.stdout + result.stderr


def test_monitor_imports_only_the_standard_library_and_the_lower_layers() -> None:
    result = run(sys.executable, "-c", LOADED)
    assert result.returncode == 0, result.stderr
    names = result.stdout.split()
    foreign = {name for name in names if "." not in name and name not in sys.stdlib_module_names} - {"bridge", "__main__"}
    assert foreign <= {"sitecustomize", "usercustomize", "apport_python_hook"}, foreign
    layers = {name.split(".")[1] for name in names if name.startswith("bridge.")}
    assert layers <= {"__main__", "errors", "log", "ports", "host", "monitor"}


def test_a_server_without_handlers_behind_shims_loads_nothing_of_them() -> None:
    """Their kit and their messages are megabytes; most servers have no such handler."""
    result = run(sys.executable, "-c", "import sys, bridge.daemon, bridge.cli.serve; print('\\n'.join(sys.modules))")
    assert result.returncode == 0, result.stderr
    foreign = ("bridge.shimv2", "bridge._proto.containerd", "bridge._proto.io", "bridge._proto.runtimeoptions", "bridge._proto.ttrpc")
    assert [name for name in result.stdout.split() if name.startswith(foreign)] == []


def test_who_asks_for_a_pods_handler_names_how_that_was_opened() -> None:
    """Else a pod whose handler left the configuration could not be served any more. New pods are made in one place only."""
    for_new_pods = {"src/bridge/core/sandboxes.py", "src/bridge/core/orphans.py", "src/bridge/core/preview.py"}
    found = []
    for path in (TOP / "src/bridge/core").glob("*.py"):
        asked = re.findall(r"handlers\.(?:backend|policy)\(([^)]*)\)", path.read_text("utf-8"))
        found += [str(path.relative_to(TOP)) for arguments in asked if "opening" not in arguments]
    assert set(found) - for_new_pods == set()
