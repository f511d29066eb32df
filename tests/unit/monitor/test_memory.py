"""OOM kills from recorded cgroup files of v1 and v2, also when the cgroup is gone before it could be read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bridge.monitor.memory import MemoryWatch
from bridge.ports.runtime import ExitStatus

KILLED = ExitStatus(137, signal=9)


class Group:
    """A pod's memory cgroup with one container's below it."""

    def __init__(self, pod: Path, file: str) -> None:
        self.pod = pod
        self.container = pod / "c"
        self.container.mkdir(parents=True)
        self._file = file
        self.set(pod=0, container=0)

    def set(self, *, pod: int, container: int) -> None:
        for directory, count in ((self.pod, pod), (self.container, container)):
            if directory.exists():
                before = "low 0\noom 9\n" if "events" in self._file else "oom_kill_disable 0\n"
                (directory / self._file).write_text(f"{before}oom_kill {count}\n")


@pytest.fixture(params=["memory.events", "memory.oom_control"])
def group(request: pytest.FixtureRequest, tmp_path: Path) -> Group:
    return Group(tmp_path / "pod", request.param)


def test_no_kill(group: Group) -> None:
    assert not MemoryWatch(group.container).oom_killed(KILLED)


def test_a_kill_counts_whatever_the_exit_code(group: Group) -> None:
    watch = MemoryWatch(group.container)
    group.set(pod=1, container=1)
    assert watch.oom_killed(KILLED)
    assert watch.oom_killed(ExitStatus(1)), "the victim may have been a child of the main process"


def test_kills_from_before_do_not_count(group: Group) -> None:
    group.set(pod=3, container=3)
    assert not MemoryWatch(group.container).oom_killed(KILLED)


def test_another_containers_kill_does_not_count_while_our_cgroup_is_there(group: Group) -> None:
    watch = MemoryWatch(group.container)
    group.set(pod=1, container=0)
    assert not watch.oom_killed(KILLED)


def test_the_pod_knows_when_the_containers_cgroup_is_gone(group: Group) -> None:
    watch = MemoryWatch(group.container)
    shutil.rmtree(group.container)
    assert not watch.oom_killed(KILLED)
    group.set(pod=1, container=0)
    assert watch.oom_killed(KILLED)
    assert not watch.oom_killed(ExitStatus(0)), "only a SIGKILL can have been the OOM killer's"


def test_all_gone_is_no_oom(group: Group) -> None:
    watch = MemoryWatch(group.container)
    shutil.rmtree(group.pod)
    assert not watch.oom_killed(KILLED)


def test_a_process_that_has_gone_has_no_watch() -> None:
    assert MemoryWatch.of(4_194_304) is None
