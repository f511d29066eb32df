import errno
from pathlib import Path

import pytest

from bridge.errors import HostError
from bridge.host import cgroup_kill, cgroups
from bridge.host.cgroup_paths import CgroupLayout, CgroupMount


def v2_tree(root: Path) -> CgroupLayout:
    (root / "cgroup.controllers").write_text("cpu memory pids\n")
    (root / "cgroup.subtree_control").write_text("")
    return CgroupLayout({"": CgroupMount(root)})


def v1_tree(root: Path) -> CgroupLayout:
    mounts = {}
    for name in ("memory", "cpuset", "freezer"):
        (root / name).mkdir()
        mounts[name] = CgroupMount(root / name)
    (root / "cpuset/cpuset.cpus").write_text("0-3\n")
    (root / "cpuset/cpuset.mems").write_text("0\n")
    return CgroupLayout(mounts)


def process(proc: Path, pid: int, text: str) -> None:
    (proc / str(pid)).mkdir(parents=True)
    (proc / str(pid) / "cgroup").write_text(text)


def test_of_pid_on_v1(tmp_path: Path) -> None:
    layout = v1_tree(tmp_path)
    process(tmp_path / "proc", 7, "3:memory:/pods/c\n2:freezer:/pods/c\n1:name=systemd:/x\n0::/\n")
    found = cgroups.of_pid(7, on=layout, proc=tmp_path / "proc")
    assert found == {"memory": tmp_path / "memory/pods/c", "freezer": tmp_path / "freezer/pods/c"}
    assert cgroups.controller_directory(found, "memory") == tmp_path / "memory/pods/c"
    assert cgroups.controller_directory(found, "pids") is None


def test_of_pid_on_v2(tmp_path: Path) -> None:
    process(tmp_path / "proc", 7, "0::/kubepods.slice/c.scope\n")
    found = cgroups.of_pid(7, on=v2_tree(tmp_path), proc=tmp_path / "proc")
    assert cgroups.controller_directory(found, "memory") == tmp_path / "kubepods.slice/c.scope"


def test_of_pid_of_nobody(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="process 9 is gone"):
        cgroups.of_pid(9, on=v2_tree(tmp_path), proc=tmp_path)


def test_oom_kills_in_each_version(tmp_path: Path) -> None:
    assert cgroups.oom_kills(tmp_path / "gone") == 0
    (tmp_path / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    assert cgroups.oom_kills(tmp_path) == 1
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 9\noom 4\noom_kill 3\n")
    assert cgroups.oom_kills(tmp_path) == 3


def test_create_on_v1_gives_a_new_cpuset_its_parents_cpus(tmp_path: Path) -> None:
    layout = v1_tree(tmp_path)
    made = tmp_path / "cpuset/pods"
    made.mkdir()
    for name in ("cpuset.cpus", "cpuset.mems"):  # the kernel makes these; a tmp dir does not
        (made / name).write_text("\n")
    directories = cgroups.create("/pods/p1", on=layout)
    assert [d.is_dir() for d in directories] == [True, True, True]
    assert (made / "cpuset.cpus").read_text() == "0-3\n"
    cgroups.create("/pods/p1", on=layout)


def test_create_on_v2_hands_the_controllers_down_but_not_below_the_leaf(tmp_path: Path) -> None:
    layout = v2_tree(tmp_path)
    (tmp_path / "pods").mkdir()
    (tmp_path / "pods/cgroup.controllers").write_text("memory\n")
    (tmp_path / "pods/cgroup.subtree_control").write_text("")
    assert cgroups.create("/pods/p1", on=layout) == (tmp_path / "pods/p1",)
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+pids"  # the last of three writes
    assert (tmp_path / "pods/cgroup.subtree_control").read_text() == "+memory"
    assert list((tmp_path / "pods/p1").iterdir()) == []


def test_create_on_a_hybrid_host_leaves_v2s_controllers_free_for_v1(tmp_path: Path) -> None:
    (tmp_path / "unified").mkdir()
    v2_tree(tmp_path / "unified")
    layout = CgroupLayout({**v1_tree(tmp_path).mounts, "": CgroupMount(tmp_path / "unified")})
    cgroups.create("/pods/p1", on=layout)
    assert (tmp_path / "unified/cgroup.subtree_control").read_text() == ""
    assert (tmp_path / "unified/pods/p1").is_dir()


def test_remove_takes_descendants_and_absent_is_success(tmp_path: Path) -> None:
    layout = v1_tree(tmp_path)
    cgroups.create("/pods/p1", on=layout)
    (tmp_path / "memory/pods/p1/exec-1/deep").mkdir(parents=True)
    cgroups.remove("/pods/p1", on=layout)
    assert not any(d.exists() for d in layout.directories("/pods/p1"))
    assert (tmp_path / "memory/pods").is_dir()
    cgroups.remove("/pods/p1", on=layout)


@pytest.mark.parametrize("name", ["/", ""])
def test_a_root_is_never_removed(tmp_path: Path, name: str) -> None:
    with pytest.raises(HostError, match="root"):
        cgroups.remove(name, on=v1_tree(tmp_path))


def test_pids_of_a_tree(tmp_path: Path) -> None:
    (tmp_path / "c/exec-1").mkdir(parents=True)
    (tmp_path / "c/cgroup.procs").write_text("10\n11\n")
    (tmp_path / "c/exec-1/cgroup.procs").write_text("12\n")
    assert sorted(cgroups.pids(tmp_path / "c")) == [10, 11, 12]
    assert cgroups.pids(tmp_path / "gone") == []


def test_kill_all_uses_the_kernels_own_on_v2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "c"
    directory.mkdir()
    (directory / "cgroup.procs").write_text("10\n")
    (directory / "cgroup.kill").write_text("")
    written = []

    def kernel(seconds: float) -> None:
        written.append((directory / "cgroup.kill").read_text())
        (directory / "cgroup.procs").write_text("")

    monkeypatch.setattr("bridge.host.cgroup_kill.time.sleep", kernel)
    cgroup_kill.kill_all(directory)
    assert written == ["1"]


def test_kill_all_of_nothing(tmp_path: Path) -> None:
    cgroup_kill.kill_all(tmp_path / "gone")


def test_a_hint_that_cannot_be_given_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "_own_directory", lambda: tmp_path / "gone")
    cgroups.hasten_attach()


def test_a_cgroup_that_goes_while_it_is_frozen_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = tmp_path / "freezer.state"
    state.write_text("FREEZING\n")
    read = Path.read_text

    def gone(path: Path, *args: object, **kwargs: object) -> str:
        if path == state:
            raise OSError(errno.ENODEV, "No such device")
        return read(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", gone)
    with cgroup_kill._frozen(tmp_path):
        pass
