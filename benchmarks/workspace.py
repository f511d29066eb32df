"""Everything a benchmark makes on the machine, under one name, so that all of it can be found and removed again.

A workspace is one private directory, with a tmpfs in it that stands for a node's /run, and one cgroup,
``cri-bench-<token>``, in every hierarchy. Each server gets a directory in both and a cgroup of its own below:
``<name>/server`` holds the server with its monitor or shims, ``<name>/pods`` is the parent of its pods' cgroups. That
tells the two servers' processes apart for counting and finds them for the final clean-up, whatever became of the servers.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

_RUN = "run"
_KILL_DEADLINE = 15.0  # seconds; beyond it a process hangs in the kernel and a person has to look


def _hierarchies() -> dict[str, Path]:
    """The mounted cgroup hierarchies by controller; "" is cgroup v2. Source: /proc/self/mountinfo, proc(5)."""
    found: dict[str, Path] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        point, (kind, _, options) = Path(left.split()[4]), right.split(maxsplit=2)
        if kind == "cgroup2":
            found[""] = point
        elif kind == "cgroup":
            found.update((option, point) for option in options.split(",") if not option.startswith(("rw", "ro", "xattr", "release_agent")))
    return found


class Workspace:
    """A private directory on ``disk`` and a cgroup; leaving the context removes both and all that lives in them."""

    def __init__(self, disk: Path = Path("/tmp")) -> None:
        self.token = secrets.token_hex(3)
        self.name = f"cri-bench-{self.token}"
        self.root = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir=disk))  # short: a unix socket's path has 107 bytes
        self._bridges: list[str] = []

    def __enter__(self) -> Self:
        run = self.directory(_RUN)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", self.name, str(run)], check=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.kill_all()
        for bridge in self._bridges:
            subprocess.run(["ip", "link", "del", bridge], check=False, capture_output=True)
        _unmount_below(self.root)
        for top in self._tops():
            _remove_cgroups(top)
        shutil.rmtree(self.root, ignore_errors=False)

    @cached_property
    def hierarchies(self) -> dict[str, Path]:
        """Mount points of the cgroup hierarchies by controller; "" is cgroup v2."""
        return _hierarchies()

    def directory(self, *parts: str) -> Path:
        """A directory in the workspace, made if it is missing."""
        path = self.root.joinpath(*parts)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def run_directory(self, *parts: str) -> Path:
        """A directory in memory, as all below /run is on a real node, made if it is missing."""
        return self.directory(_RUN, *parts)

    def bridge(self, index: int) -> str:
        """The name of a network bridge that goes away with the workspace."""
        name = f"cb{self.token}{index}"
        self._bridges.append(name)
        return name

    def make_pod_cgroup(self, server: str, uid: str) -> str:
        """Make a pod's cgroup in every hierarchy, as a kubelet does before RunPodSandbox; returns the cgroup_parent."""
        relative = f"{self.name}/{server}/pods/pod{uid}"
        for mount in set(self.hierarchies.values()):
            _make_cgroup(mount, relative)
        return f"/{relative}"

    def remove_pod_cgroup(self, server: str, uid: str) -> None:
        """Remove a pod's cgroup, as a kubelet does after RemovePodSandbox."""
        for mount in set(self.hierarchies.values()):
            _remove_cgroups(mount / self.name / server / "pods" / f"pod{uid}")

    def adopt(self, server: str, pid: int) -> None:
        """Move a server that was just started into its cgroup; all that it spawns is born there."""
        _make_cgroup(self._accounting, f"{self.name}/{server}/server")
        (self._accounting / self.name / server / "server" / "cgroup.procs").write_text(str(pid))

    def processes(self, server: str) -> list[int]:
        """Pids of the server and its monitor or shims; no container is among them."""
        text = (self._accounting / self.name / server / "server" / "cgroup.procs").read_text()
        return [int(pid) for pid in text.split()]

    def in_pods(self, server: str) -> list[int]:
        """Pids of everything in the server's pods."""
        return _pids_below(self._accounting / self.name / server / "pods")

    def cpu_ms(self, server: str) -> float:
        """CPU time used so far by the server, all its helpers and its pods, in milliseconds."""
        directory = self._accounting / self.name / server
        v1 = directory / "cpuacct.usage"
        if v1.exists():
            return int(v1.read_text()) / 1e6
        fields = dict(line.split() for line in (directory / "cpu.stat").read_text().splitlines())
        return int(fields["usage_usec"]) / 1e3

    def kill_all(self) -> None:
        """SIGKILL every process in the workspace's cgroups and wait until they are gone. Raises TimeoutError."""
        deadline = time.monotonic() + _KILL_DEADLINE
        while pids := {pid for top in self._tops() for pid in _pids_below(top)}:
            if time.monotonic() > deadline:
                raise TimeoutError(f"these processes can't be killed: {sorted(pids)}")
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    @property
    def _accounting(self) -> Path:
        return self.hierarchies["cpuacct"] if "cpuacct" in self.hierarchies else self.hierarchies[""]

    def _tops(self) -> list[Path]:
        return [top for mount in sorted(set(self.hierarchies.values())) if (top := mount / self.name).is_dir()]


def _make_cgroup(mount: Path, relative: str) -> None:
    """mkdir -p in one hierarchy; a v1 cpuset accepts no process before its cpus and mems are set."""
    path = mount
    for part in relative.split("/"):
        parent, path = path, path / part
        path.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):
            file = path / name
            if file.exists() and (path / "cgroup.clone_children").exists() and not file.read_text().strip():
                file.write_text((parent / name).read_text())


def _pids_below(top: Path) -> list[int]:
    found: list[int] = []
    for directory, _, _ in os.walk(top):
        with suppress(OSError):  # removed meanwhile, or a threaded v2 group
            found += [int(pid) for pid in Path(directory, "cgroup.procs").read_text().split()]
    return found


def _remove_cgroups(top: Path) -> None:
    """rmdir a cgroup and all below it, deepest first; a busy one raises OSError."""
    for directory, _, _ in os.walk(top, topdown=False):
        with suppress(FileNotFoundError):
            Path(directory).rmdir()


def _unmount_below(root: Path) -> None:
    """Unmount all that is mounted under ``root``, newest first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4] for line in lines if line.split()[4].startswith(f"{root}/")]
    for point in reversed(points):
        subprocess.run(["umount", "-l", point], check=False, capture_output=True)
