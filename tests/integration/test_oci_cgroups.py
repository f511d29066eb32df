"""bridge.host.cgroups on the cgroup hierarchies of this machine."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from bridge.errors import TimedOut
from bridge.host import cgroup_kill, cgroups

pytestmark = pytest.mark.root
# It forks only once it was moved, at most 400 times, and every child ends by itself: whatever the kill under test does, the
# machine survives it.
FORKER = """
import os, sys, time
sys.stdin.readline()
for _ in range(400):
    if os.fork() == 0:
        time.sleep(20)
        os._exit(0)
    time.sleep(0.001)
time.sleep(20)
"""


@pytest.fixture
def cgroup() -> Iterator[str]:
    name = f"/cri-bridge-test-{os.getpid()}"
    yield name + "/pod"
    for directory in cgroups.layout().directories(name):
        cgroup_kill.kill_all(directory)
    cgroups.remove(name)


def spawn(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, start_new_session=True)


def kill_directory(cgroup: str) -> str:
    return "" if cgroups.is_v2() else "freezer"


def test_create_join_of_pid_remove(cgroup: str) -> None:
    directories = cgroups.create(cgroup)
    child = subprocess.Popen(
        [sys.executable, "-c", f"from bridge.host import cgroups; cgroups.join({cgroup!r}); print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": "src"},
    )
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        assert set(cgroups.of_pid(child.pid).values()) == set(directories)
        assert all(cgroups.pids(d) == [child.pid] for d in directories)
        with pytest.raises(TimedOut, match=str(child.pid)):
            cgroups.remove(cgroup, timeout=0.05)
        child.communicate(b"\n")
    cgroups.remove(cgroup)
    assert not any(d.exists() for d in directories)


def test_kill_all_outruns_a_process_that_forks_on(cgroup: str) -> None:
    cgroups.create(cgroup)
    directory = cgroups.layout().mounts[kill_directory(cgroup)].directory(cgroup)
    child = spawn(FORKER)
    assert child.stdin is not None
    try:
        assert cgroups.move(child.pid, directory)
        child.stdin.write(b"\n")
        child.stdin.close()
        deadline = time.monotonic() + 20
        while len(cgroups.pids(directory)) < 20:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        cgroup_kill.kill_all(directory)
        assert cgroups.pids(directory) == []
    finally:
        child.kill()
        child.wait()


def test_move_of_a_process_that_is_gone(cgroup: str) -> None:
    directory = cgroups.create(cgroup)[0]
    child = spawn("")
    child.communicate()
    assert not cgroups.move(child.pid, directory)
