"""The leak audit sees what belongs to its scope, and nothing else."""

import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bridge.host import syscalls
from bridge.testing.leaks import Scope, difference, settle, snapshot


@contextmanager
def sleeper(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits for its stdin to close, with ``arguments`` on its command line."""
    with subprocess.Popen([sys.executable, "-S", "-c", "import sys; sys.stdin.read()", *arguments], stdin=subprocess.PIPE) as process:
        yield process
        assert process.stdin
        process.stdin.close()


def test_nothing_changed_means_no_lines(tmp_path: Path) -> None:
    scope = Scope(roots=[tmp_path], pids=[os.getpid()])
    assert difference(snapshot(scope), snapshot(scope)) == []


def test_files_below_the_roots_only(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    scope = Scope(roots=[tmp_path / "mine"])
    before = snapshot(scope)
    (tmp_path / "mine" / "10.0.0.7").write_text("lease")
    (tmp_path / "other").write_text("")
    assert difference(before, snapshot(scope)) == [f"file: {tmp_path}/mine/10.0.0.7"]


def test_a_sibling_with_the_same_beginning_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    scope = Scope(roots=[tmp_path / "run"])
    before = snapshot(scope)
    with sleeper(str(tmp_path / "elsewhere")):
        assert difference(before, snapshot(scope)) == []


def test_process_that_mentions_a_root(tmp_path: Path) -> None:
    scope = Scope(roots=[tmp_path])
    before = snapshot(scope)
    with sleeper(str(tmp_path / "bundle")) as process:
        (line,) = difference(before, snapshot(scope))
        assert line.startswith(f"process: {process.pid} ")
    assert settle(scope, before) == []


def test_descendants_and_zombies_of_a_given_process() -> None:
    scope = Scope(pids=[os.getpid()])
    before = {**snapshot(scope), "descriptor": Counter()}
    with sleeper() as process:
        found = [line for line in difference(before, snapshot(scope)) if line.startswith(f"process: {process.pid}")]
        assert len(found) == 1
        assert process.stdin
        process.stdin.close()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert any(f"process: {process.pid} (zombie)" in line for line in difference(before, snapshot(scope)))


def test_descriptors_count_by_kind() -> None:
    scope = Scope(pids=[os.getpid()])
    before = snapshot(scope)
    with socket.socket(), socket.socket():
        assert f"descriptor: of process {os.getpid()}: socket (2 more)" in difference(before, snapshot(scope))


def test_settle_returns_what_stays(tmp_path: Path) -> None:
    scope = Scope(roots=[tmp_path])
    before = snapshot(scope)
    (tmp_path / "left").write_text("")
    assert settle(scope, before, timeout=0.01) == [f"file: {tmp_path}/left"]


@pytest.mark.root
def test_mounts_below_the_roots(tmp_path: Path) -> None:
    scope = Scope(roots=[tmp_path])
    target = tmp_path / "target"
    target.mkdir()
    before = snapshot(scope)
    syscalls.mount("none", target, "tmpfs", 0, "size=64k")
    try:
        (target / "inside").write_text("a mounted file system is one leak, not a leak for each of its files")
        assert difference(before, snapshot(scope)) == [f"mount: tmpfs on {target}"]
    finally:
        syscalls.umount(target)


@pytest.mark.root
def test_cgroups_with_a_mark() -> None:
    pids = Path("/sys/fs/cgroup/pids")
    top = pids if pids.is_dir() else Path("/sys/fs/cgroup")
    mark = f"leak-audit-{os.getpid()}"
    scope = Scope(cgroup_marks=[mark])
    before = snapshot(scope)
    (top / mark).mkdir()
    try:
        assert f"cgroup: {top / mark}" in difference(before, snapshot(scope))
    finally:
        (top / mark).rmdir()
    assert settle(scope, before) == []


def test_what_is_kept_on_purpose_is_no_leak(tmp_path: Path) -> None:
    scope = Scope(roots=[tmp_path], shared=[tmp_path / "pods"], caches=[tmp_path / "cache"])
    before = snapshot(scope)
    for name in ("pods/one", "cache/deep/filter"):
        (tmp_path / name).mkdir(parents=True)
    assert difference(before, snapshot(scope)) == [f"file: {tmp_path}/pods/one"]
