"""Which cgroups of trials are taken for abandoned, on trees of both kinds of hierarchies."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from bridge.errors import TimedOut
from bridge.host import trial_cgroups
from bridge.host.cgroup_paths import CgroupLayout, CgroupMount

V1, V2 = ("memory", "freezer", "name=systemd"), ("",)
both = pytest.mark.parametrize("controllers", [V1, V2], ids=["v1", "v2"])


def layout(root: Path, controllers: tuple[str, ...]) -> CgroupLayout:
    mounts = {name: CgroupMount(root / (name or "unified")) for name in controllers}
    for mount in mounts.values():
        mount.point.mkdir()
    return CgroupLayout(mounts)


def make(on: CgroupLayout, name: str, *, age: float = 3600.0, inside: str = "") -> list[Path]:
    places = [mount.point / name for mount in on.mounts.values()]
    for place in places:
        (place / inside).mkdir(parents=True)
        os.utime(place, (time.time() - age, time.time() - age))
    return places


@both
def test_old_and_empty_ones_are_found_and_removed_everywhere(tmp_path: Path, controllers: tuple[str, ...]) -> None:
    on = layout(tmp_path, controllers)
    gone = [*make(on, "cri-bridge-trial-runc-0a0b0c0d"), *make(on, "cri-bridge-trial-crun-0a0b0c0d", inside="container")]
    kept = [*make(on, "cri-bridge-trial-runc-11111111", age=60.0), *make(on, "kubepods"), *make(on, "cri-bridge-0a0b0c0d")]
    assert trial_cgroups.abandoned(on=on) == ["cri-bridge-trial-crun-0a0b0c0d", "cri-bridge-trial-runc-0a0b0c0d"]
    for name in trial_cgroups.abandoned(on=on):
        trial_cgroups.remove(name, on=on)
        trial_cgroups.remove(name, on=on)
    assert not any(path.exists() for path in gone)
    assert all(path.is_dir() for path in kept)


@both
def test_one_with_a_process_or_young_in_one_hierarchy_is_a_live_trial(tmp_path: Path, controllers: tuple[str, ...]) -> None:
    on = layout(tmp_path, controllers)
    used, inside, young = (make(on, f"cri-bridge-trial-{name}", inside="sub") for name in ("used", "inside", "young"))
    (used[-1] / "cgroup.procs").write_text("7\n")
    (inside[0] / "sub" / "cgroup.procs").write_text("7\n")
    for place in (used[-1], inside[0]):
        os.utime(place, (0, 0))
    os.utime(young[-1])
    assert trial_cgroups.abandoned(on=on) == []


def test_one_that_is_used_after_all_stays(tmp_path: Path) -> None:
    on = layout(tmp_path, V2)
    (place,) = make(on, "cri-bridge-trial-runc-0a0b0c0d")
    (place / "cgroup.procs").write_text("7\n")
    with pytest.raises(TimedOut, match="is still in use"):
        trial_cgroups.remove("cri-bridge-trial-runc-0a0b0c0d", on=on)
    assert place.is_dir()


def test_a_hierarchy_that_is_not_mounted_here_holds_none(tmp_path: Path) -> None:
    assert trial_cgroups.abandoned(on=CgroupLayout({"memory": CgroupMount(tmp_path / "absent")})) == []
