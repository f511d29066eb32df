from pathlib import Path

import pytest

from bridge.errors import InvalidRequest
from bridge.host import cgroup_paths as paths
from bridge.host.cgroup_paths import CgroupDriver

HYBRID = """\
25 1 0:21 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
26 25 0:22 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
27 25 0:23 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
28 25 0:24 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,release_agent=/lib/x,name=systemd
29 25 0:25 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
30 25 0:23 /kubepods /var/lib/odd\\040place rw - cgroup cgroup rw,memory
"""
V2 = "35 1 0:30 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
INSIDE = "35 1 0:30 /docker/abc /sys/fs/cgroup ro master:3 - cgroup cgroup rw,memory\n"


def test_hybrid_is_v1_and_later_bind_mounts_do_not_count() -> None:
    layout = paths.parse_mountinfo(HYBRID)
    assert not layout.is_v2
    assert set(layout.mounts) == {"cpu", "cpuacct", "memory", "name=systemd", ""}
    assert layout.mounts["memory"].directory("/a/b") == Path("/sys/fs/cgroup/memory/a/b")
    assert [str(d) for d in layout.directories("/p")] == [
        "/sys/fs/cgroup/cpu,cpuacct/p",
        "/sys/fs/cgroup/memory/p",
        "/sys/fs/cgroup/systemd/p",
        "/sys/fs/cgroup/unified/p",
    ]


def test_unified() -> None:
    layout = paths.parse_mountinfo(V2)
    assert layout.is_v2
    assert layout.directories("/kubepods.slice/x.scope") == (Path("/sys/fs/cgroup/kubepods.slice/x.scope"),)


def test_a_bind_mounted_subtree_is_relative_to_its_root() -> None:
    mount = paths.parse_mountinfo(INSIDE).mounts["memory"]
    assert mount.directory("/docker/abc/child") == Path("/sys/fs/cgroup/child")
    assert mount.directory("/docker/abc") == Path("/sys/fs/cgroup")
    assert mount.directory("/elsewhere") == Path("/sys/fs/cgroup")


def test_escapes_and_damaged_lines() -> None:
    text = "garbage\n30 25 0:23 / /odd\\040place\\134x rw - cgroup cgroup rw,memory\n1 2 3 - cgroup\n"
    assert paths.parse_mountinfo(text).mounts["memory"].point == Path("/odd place\\x")


def test_proc_cgroup() -> None:
    text = "9:name=systemd:/init.scope\n4:cpu,cpuacct:/a:b\n3:memory:/gone (deleted)\n0::/\n"
    assert paths.parse_proc_cgroup(text) == {"name=systemd": "/init.scope", "cpu": "/a:b", "cpuacct": "/a:b", "memory": "/gone", "": "/"}


def test_counter() -> None:
    assert paths.parse_counter("low 0\noom 3\noom_kill 2\noom_group_kill 0\n", "oom_kill") == 2
    assert paths.parse_counter("oom_kill_disable 0\nunder_oom 0\n", "oom_kill") == 0


@pytest.mark.parametrize(
    ("name", "expanded"),
    [
        ("a-b-c.slice", "a.slice/a-b.slice/a-b-c.slice"),
        ("system.slice", "system.slice"),
        ("-.slice", ""),
        ("kubepods-pod1_2.slice", "kubepods.slice/kubepods-pod1_2.slice"),
    ],
)
def test_expand_slice(name: str, expanded: str) -> None:
    assert paths.expand_slice(name) == expanded


@pytest.mark.parametrize("name", ["a.scope", "a/b.slice", "a--b.slice", "-a.slice", ".slice", "a-.slice"])
def test_bad_slices_name_the_field(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"linux\.cgroup_parent"):
        paths.expand_slice(name)


def test_cgroupfs_rules() -> None:
    driver = CgroupDriver.CGROUPFS
    assert paths.pod_cgroup("/kubepods/burstable/pod7", driver) == "/kubepods/burstable/pod7"
    assert paths.pod_cgroup("kubepods//pod7/", driver) == "/kubepods/pod7"
    assert paths.of_cgroups_path("/kubepods/pod7/cri-bridge-c1", driver) == "/kubepods/pod7/cri-bridge-c1"
    with pytest.raises(InvalidRequest, match="must be absolute"):
        paths.of_cgroups_path("a.slice:p:c1", driver)


def test_systemd_rules() -> None:
    driver = CgroupDriver.SYSTEMD
    parent = "/kubepods.slice/kubepods-pod7.slice"
    assert paths.pod_cgroup(parent, driver) == parent
    assert paths.pod_cgroup("kubepods-pod7.slice", driver) == parent
    assert paths.pod_cgroup("", driver) == "/system.slice"
    assert paths.of_cgroups_path("kubepods-pod7.slice:cri-bridge:c1", driver) == parent + "/cri-bridge-c1.scope"
    assert paths.of_cgroups_path(":cri-bridge:c1", driver) == "/system.slice/cri-bridge-c1.scope"
    with pytest.raises(InvalidRequest, match="slice:prefix:name"):
        paths.of_cgroups_path("/kubepods/pod7/c1", driver)


def test_the_two_drivers_are_told_apart() -> None:
    with pytest.raises(InvalidRequest, match="set both to the same"):
        paths.pod_cgroup("/kubepods.slice/kubepods-pod7.slice", CgroupDriver.CGROUPFS)
    with pytest.raises(InvalidRequest, match="not a systemd slice"):
        paths.pod_cgroup("/kubepods/pod7", CgroupDriver.SYSTEMD)
    with pytest.raises(InvalidRequest, match=r"\.\."):
        paths.pod_cgroup("/kubepods/../../x", CgroupDriver.CGROUPFS)
