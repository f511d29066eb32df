"""What a table must say of the machine it was made on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path


def describe() -> str:
    """One line: processor, cores, memory, system, kernel, cgroup version, Python, load at this moment."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    system = re.search(r'PRETTY_NAME="(.*)"', Path("/etc/os-release").read_text())
    cgroups = "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1"
    parts = [
        f"{os.cpu_count()} × {cpu.group(1).strip() if cpu else platform.machine()}",
        f"{int(memory.group(1)) / (1 << 20):.0f} GiB" if memory else "",
        system.group(1) if system else platform.system(),
        f"Linux {platform.release()}",
        f"cgroup {cgroups}",
        f"CPython {platform.python_version()}",
        f"load average {os.getloadavg()[0]:.1f}",
    ]
    return ", ".join(part for part in parts if part)


def versions(runtime: Path, cni_bin: Path) -> str:
    """One line: the programs that took part."""
    tools = (["containerd", "--version"], [str(runtime), "--version"], ["conmon", "--version"], [str(cni_bin / "bridge"), "--version"])
    return "; ".join(first_line(tool) for tool in tools)


def first_line(argv: Sequence[str]) -> str:
    """The first line that a command prints, e.g. for its version."""
    done = subprocess.run(list(argv), check=False, capture_output=True, text=True, timeout=20)
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0] if lines else f"{argv[0]}: no output"
