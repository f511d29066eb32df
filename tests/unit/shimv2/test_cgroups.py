"""Where a shim's containers are, by both drivers and in both versions of cgroups: from the spec's path to what is read and killed there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from bridge.host import cgroup_stats, cgroups
from bridge.host.cgroup_kill import kill_directory
from bridge.host.cgroup_paths import CgroupLayout, CgroupMount
from bridge.shimv2.runtime import ShimRuntime, ShimSettings, oom_kills
from bridge.shimv2.verbs import ShimBinary

SYSTEMD = (
    "kubepods-burstable-pod7.slice:cri-bridge:c1",
    "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod7.slice/cri-bridge-c1.scope",
)
CGROUPFS = ("/kubepods/burstable/pod7/cri-bridge-c1", "kubepods/burstable/pod7/cri-bridge-c1")


def runtime(root: Path, *, systemd: bool, own_cgroups: bool = True) -> ShimRuntime:
    binary = ShimBinary(path=root / "shim", handler="h", namespace="n", events=root / "events", env={})
    settings = ShimSettings(binary, root, systemd_cgroup=systemd, own_cgroups=own_cgroups)
    return ShimRuntime(settings, cast("Any", None), cast("Any", None))


@pytest.fixture(params=["v1", "v2"])
def tree(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CgroupLayout:
    """A recorded host, in place of this one."""
    v1 = {name: CgroupMount(tmp_path / name) for name in ("cpuacct", "memory", "pids", "freezer")}
    layout = CgroupLayout(v1 if request.param == "v1" else {"": CgroupMount(tmp_path)})
    monkeypatch.setattr(cgroups, "layout", lambda: layout)
    monkeypatch.setattr(cgroup_stats, "layout", lambda: layout)
    return layout


def record(layout: CgroupLayout, place: str) -> Path:
    """A container that uses memory and had one kill; returns where it is frozen and killed."""
    top = {name: mount.point for name, mount in layout.mounts.items()}
    usage, events = ("memory.current", "memory.events") if layout.is_v2 else ("memory.usage_in_bytes", "memory.oom_control")
    memory = top.get("memory", top.get("")) or Path()
    for point in dict.fromkeys(top.values()):
        (point / place).mkdir(parents=True, exist_ok=True)
    (memory / place / usage).write_text("4096\n")
    (memory / place / "memory.stat").write_text("inactive_file 0\ntotal_inactive_file 0\n")
    (memory / place / events).write_text("oom_kill 1\n")
    return (top.get("freezer") or memory) / place


@pytest.mark.parametrize(("path", "place", "systemd"), [(*SYSTEMD, True), (*CGROUPFS, False)], ids=["systemd", "cgroupfs"])
def test_a_containers_cgroup_is_where_its_spec_says(tree: CgroupLayout, tmp_path: Path, path: str, place: str, systemd: bool) -> None:
    killing = record(tree, place)
    cgroup = runtime(tmp_path, systemd=systemd).cgroup({"linux": {"cgroupsPath": path}})
    assert cgroup == f"/{place}"
    found = cgroup_stats.read(cgroup, on=tree)
    assert found.memory is not None
    assert found.memory.usage == 4096
    assert kill_directory(cgroup) == killing
    assert oom_kills(cgroup) == 1
    assert oom_kills("/elsewhere") == 0


def test_a_guests_cgroups_are_not_the_hosts(tmp_path: Path) -> None:
    assert runtime(tmp_path, systemd=True, own_cgroups=False).cgroup({"linux": {"cgroupsPath": SYSTEMD[0]}}) is None
    assert runtime(tmp_path, systemd=True).cgroup({}) is None
    assert (kill_directory(None), oom_kills(None)) == (None, 0)


@pytest.mark.parametrize("systemd", [True, False])
def test_a_handler_that_makes_cgroups_itself_gets_a_path_on_a_host_of_systemd(tmp_path: Path, systemd: bool) -> None:
    found = runtime(tmp_path, systemd=systemd)
    made = found.fitting({"linux": {"cgroupsPath": SYSTEMD[0], "seccomp": {}}})
    assert made == {"linux": {"cgroupsPath": SYSTEMD[0] if systemd else f"/{SYSTEMD[1]}", "seccomp": {}}}
    assert found.cgroup(made) == f"/{SYSTEMD[1]}"
    assert found.fitting({"linux": {"cgroupsPath": CGROUPFS[0]}}) == {"linux": {"cgroupsPath": CGROUPFS[0]}}
    assert found.fitting({}) == {}
