"""What counts as a server's, on a recorded /proc."""

import os
from pathlib import Path

import pytest

from bridge.testing.conformance.footprint import footprint
from bridge.testing.leaks import Scope


def process(
    proc: Path, pid: int, command: str, *, parent: int = 1, cgroup: str = "/", cwd: str = "/", pss: int = 100, ticks: int = 10
) -> None:
    directory = proc / str(pid)
    directory.mkdir()
    fields = ["S", str(parent), *["0"] * 9, str(ticks), "0"]
    (directory / "stat").write_text(f"{pid} (some (name)) {' '.join(fields)}\n")
    (directory / "cgroup").write_text(f"0::{cgroup}\n")
    (directory / "cmdline").write_bytes(command.replace(" ", "\0").encode() + b"\0")
    (directory / "cwd").symlink_to(cwd)
    (directory / "smaps_rollup").write_text(f"Rss: 1 kB\nPss:   {pss} kB\nPss_Anon: 5 kB\n")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    process(tmp_path, 10, "cri-bridge serve", pss=1000)
    process(tmp_path, 11, "helper", parent=10)
    process(tmp_path, 20, "shim -id abc", cwd="/tmp/cbc-1/run/bundle")
    process(tmp_path, 21, "qemu", parent=20, pss=5000, ticks=30)
    process(tmp_path, 30, "sleep 123456789", cgroup="/cbcmark/pod/x", pss=7)
    process(tmp_path, 31, "sentry sleep", cgroup="/cbcmark/pod/x", pss=2000)
    process(tmp_path, 40, "others /var/lib", pss=99999)
    process(tmp_path, 41, "sleep 123456789", pss=99999)
    return tmp_path


def test_what_serves_pods_is_told_from_their_workload_and_from_others(proc: Path) -> None:
    scope = Scope(roots=[Path("/tmp/cbc-1")], cgroup_marks=["cbcmark"], pids=[10])
    found = footprint(scope, "123456789", proc)
    assert found.pss == (1000 + 100 + 100 + 5000 + 2000) * 1024
    assert found.workload == 7 * 1024
    assert found.cpu_seconds == pytest.approx((4 * 10 + 30) / os.sysconf("SC_CLK_TCK"))


def test_a_process_that_ends_meanwhile_harms_nothing(proc: Path) -> None:
    (proc / "99").mkdir()
    (proc / "21" / "smaps_rollup").unlink()
    scope = Scope(roots=[Path("/tmp/cbc-1")], pids=[10])
    assert footprint(scope, "123456789", proc).pss == (1000 + 100 + 100) * 1024
