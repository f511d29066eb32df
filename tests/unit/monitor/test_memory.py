"""OOM kills from recorded cgroup files of v1 and v2, also when the cgroup is gone before it could be read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bridge.monitor.memory import GoneKills, MemoryWatch
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


@pytest.fixture
def v2(tmp_path: Path) -> Group:
    return Group(tmp_path / "pod", "memory.events")


def test_no_kill(group: Group) -> None:
    assert not MemoryWatch(group.container).oom_killed(KILLED)


def test_a_kill_counts_whatever_the_exit_code(group: Group) -> None:
    watches = MemoryWatch(group.container), MemoryWatch(group.container)
    group.set(pod=1, container=1)
    assert watches[0].oom_killed(KILLED)
    assert watches[1].oom_killed(ExitStatus(1)), "the victim may have been a child of the main process"


def test_kills_from_before_do_not_count(group: Group) -> None:
    group.set(pod=3, container=3)
    assert not MemoryWatch(group.container).oom_killed(KILLED)


def test_another_containers_kill_does_not_count_while_our_cgroup_is_there(group: Group) -> None:
    watch = MemoryWatch(group.container)
    group.set(pod=1, container=0)
    assert not watch.oom_killed(KILLED)


def test_on_v2_the_pod_knows_when_the_containers_cgroup_is_gone(v2: Group) -> None:
    gone = GoneKills()
    watch, later = MemoryWatch(v2.container, gone), MemoryWatch(v2.container, gone)
    shutil.rmtree(v2.container)
    assert not watch.oom_killed(KILLED)
    v2.set(pod=1, container=0)
    assert watch.oom_killed(KILLED)
    assert not later.oom_killed(KILLED), "it was told of another already"


def test_only_a_sigkill_can_have_been_the_oom_killers(v2: Group) -> None:
    watch = MemoryWatch(v2.container)
    shutil.rmtree(v2.container)
    v2.set(pod=1, container=0)
    assert not watch.oom_killed(ExitStatus(0))


@pytest.mark.parametrize("there", [True, False])
def test_the_kill_of_a_neighbour_is_not_ours_once_both_cgroups_are_gone(v2: Group, there: bool) -> None:
    gone = GoneKills()
    other = v2.pod / "other"
    other.mkdir()
    ours, theirs = MemoryWatch(v2.container, gone), MemoryWatch(other, gone)
    v2.set(pod=1, container=0)
    (other / "memory.events").write_text("oom_kill 1\n")
    if there:
        assert theirs.oom_killed(KILLED)
        shutil.rmtree(other)
    else:
        shutil.rmtree(other)
        assert theirs.oom_killed(KILLED)
    shutil.rmtree(v2.container)
    assert not ours.oom_killed(KILLED)


def test_the_kill_of_a_neighbour_that_is_there_is_not_ours(v2: Group) -> None:
    gone = GoneKills()
    other = v2.pod / "other"
    other.mkdir()
    ours = MemoryWatch(v2.container, gone)
    v2.set(pod=1, container=0)
    (other / "memory.events").write_text("oom_kill 1\n")
    shutil.rmtree(v2.container)
    assert not ours.oom_killed(KILLED)


def test_a_pod_cgroup_of_the_same_name_counts_anew(v2: Group) -> None:
    gone = GoneKills()
    first = MemoryWatch(v2.container, gone)
    shutil.rmtree(v2.container)
    v2.set(pod=3, container=0)
    assert first.oom_killed(KILLED)
    v2.pod.rename(v2.pod.with_name("old"))
    again = Group(v2.pod, "memory.events")
    second = MemoryWatch(again.container, gone)
    shutil.rmtree(again.container)
    again.set(pod=1, container=0)
    assert second.oom_killed(KILLED)


def test_all_gone_is_no_oom(group: Group) -> None:
    watch = MemoryWatch(group.container)
    shutil.rmtree(group.pod)
    assert not watch.oom_killed(KILLED)


def test_a_pod_that_is_gone_is_let_go_of_though_a_watch_is_left(v2: Group, tmp_path: Path) -> None:
    gone = GoneKills()
    watch = MemoryWatch(v2.container, gone)
    shutil.rmtree(v2.pod)
    MemoryWatch(Group(tmp_path / "next", "memory.events").container, gone)
    assert not watch.oom_killed(KILLED)


def test_a_process_that_has_gone_has_no_watch() -> None:
    assert MemoryWatch.of(4_194_304, GoneKills()) is None
