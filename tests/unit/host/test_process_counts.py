"""Processes and what they have open, out of recorded trees and of this process."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from bridge.host import process_counts, syscalls
from bridge.host.cgroup_paths import CgroupLayout, CgroupMount
from bridge.host.process_counts import ProcessCounts


@pytest.fixture(autouse=True)
def numbers_of_nobody(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of recorded processes are not to be looked up in this kernel."""
    if "order" not in request.node.name and "lives" not in request.node.name:
        monkeypatch.setattr(syscalls, "order_of_files", lambda _one, _other: None)


LIMITS = (
    "Limit                     Soft Limit           Hard Limit           Units     \n"
    "Max open files            1024                 4096                 files     \n"
)


def cgroup(root: Path, *pids: int) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
    return root


def process(proc: Path, pid: int, *links: str, limits: str = LIMITS) -> None:
    (proc / str(pid) / "fd").mkdir(parents=True)
    (proc / str(pid) / "limits").write_text(limits)
    for number, target in enumerate(links):
        (proc / str(pid) / "fd" / str(number)).symlink_to(target)


def v2(root: Path) -> CgroupLayout:
    return CgroupLayout({"": CgroupMount(root)})


@pytest.mark.parametrize("controllers", [("",), ("pids", "memory"), ("memory", ""), ("freezer",)])
def test_all_that_a_cgroup_holds(tmp_path: Path, controllers: tuple[str, ...]) -> None:
    cgroup(tmp_path / "cgroup" / "p", 5, 6)
    process(tmp_path / "proc", 5, "/dev/null", "socket:[1]", "pipe:[2]")
    process(tmp_path / "proc", 6, "socket:[3]", "socket:[4]", limits="")
    on = CgroupLayout({name: CgroupMount(tmp_path / "cgroup") for name in controllers})
    assert process_counts.read("/p", 5, on=on, proc=tmp_path / "proc") == ProcessCounts(2, 5, 3, 1024)


def test_those_in_cgroups_below_count(tmp_path: Path) -> None:
    top = cgroup(tmp_path / "cgroup" / "p")
    cgroup(top / "init", 5)
    cgroup(top / "system" / "deep", 6, 7)
    cgroup(top / "system")
    for pid in (5, 6, 7):
        process(tmp_path / "proc", pid, "/dev/null")
    assert process_counts.read("/p", 5, on=v2(tmp_path / "cgroup"), proc=tmp_path / "proc") == ProcessCounts(3, 3, 0, 1024)


def test_one_that_ended_meanwhile(tmp_path: Path) -> None:
    cgroup(tmp_path / "cgroup" / "p", 5, 6)
    process(tmp_path / "proc", 6, "socket:[3]")
    assert process_counts.read("/p", 5, on=v2(tmp_path / "cgroup"), proc=tmp_path / "proc") == ProcessCounts(2, 1, 1, None)


def test_no_limit_is_none(tmp_path: Path) -> None:
    cgroup(tmp_path / "cgroup" / "p", 5)
    process(tmp_path / "proc", 5, limits=LIMITS.replace("1024 ", "unlimited "))
    assert process_counts.read("/p", 5, on=v2(tmp_path / "cgroup"), proc=tmp_path / "proc") == ProcessCounts(1, 0, 0, None)


def test_too_many_are_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_counts, "_LOOKS", 3)
    cgroup(tmp_path / "cgroup" / "p", 5, 6)
    process(tmp_path / "proc", 5, "socket:[1]", "socket:[2]")
    process(tmp_path / "proc", 6, "socket:[3]", "socket:[4]")
    assert process_counts.read("/p", 5, on=v2(tmp_path / "cgroup"), proc=tmp_path / "proc") == ProcessCounts(2, None, None, 1024)


@pytest.mark.parametrize("pids", [None, ()])
def test_a_cgroup_that_is_gone_or_empty(tmp_path: Path, pids: tuple[int, ...] | None) -> None:
    if pids is not None:
        cgroup(tmp_path / "p", *pids)
    assert process_counts.read("/p", 5, on=v2(tmp_path), proc=tmp_path / "proc") is None


def test_a_process_that_lives(tmp_path: Path) -> None:
    one, other = socket.socketpair()
    with (
        one,
        other,
        subprocess.Popen(["sh", "-c", "echo; exec sleep 100"], stdout=subprocess.PIPE, pass_fds=(one.fileno(), other.fileno())) as child,
    ):
        try:
            assert child.stdout is not None
            child.stdout.readline()
            cgroup(tmp_path / "p", child.pid)
            for _ in range(100):  # its libraries are open while it begins
                found = process_counts.read("/p", child.pid, on=v2(tmp_path))
                listed = len(os.listdir(f"/proc/{child.pid}/fd"))
                if found is not None and found.descriptors == listed:
                    break
        finally:
            child.kill()
    assert found is not None
    assert (found.processes, found.descriptors) == (1, listed)
    assert found.sockets is not None
    assert found.sockets >= 2


@pytest.mark.parametrize("owners", [(5,), (5, 6, 7, 8), (5, 5, 7, 7), (7, 5, 7, 5), (5, 6, 5, 8)])
def test_a_shared_table_of_descriptors_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owners: tuple[int, ...]) -> None:
    tables = dict(zip((5, 6, 7, 8), owners, strict=False))
    monkeypatch.setattr(syscalls, "order_of_files", lambda one, other: tables[one] - tables[other])
    cgroup(tmp_path / "cgroup" / "p", *tables)
    for pid in tables:
        process(tmp_path / "proc", pid, "socket:[1]", "/file")
    found = process_counts.read("/p", 5, on=v2(tmp_path / "cgroup"), proc=tmp_path / "proc")
    distinct = len(set(owners))
    assert found == ProcessCounts(len(owners), 2 * distinct, distinct, 1024)


def test_the_kernels_order_of_tables() -> None:
    """Threads share their process's table; another process has its own."""
    with subprocess.Popen(["sleep", "100"]) as child:
        try:
            thread = threading.Thread(target=(hold := threading.Event()).wait)
            thread.start()
            try:
                shared = syscalls.order_of_files(os.getpid(), thread.native_id or 0)
            finally:
                hold.set()
                thread.join()
            found = [syscalls.order_of_files(os.getpid(), child.pid), syscalls.order_of_files(child.pid, os.getpid())]
        finally:
            child.kill()
    assert (shared, sorted(map(str, found))) in ((0, ["-1", "1"]), (None, ["None", "None"])), "a kernel may be built without kcmp"
    assert syscalls.order_of_files(os.getpid(), 2**22 + 1) is None
