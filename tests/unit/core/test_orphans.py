"""Cgroups of broken-off trials go when a server looks for orphans; other kinds of orphans are tried against a real host."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bridge.core import orphans
from bridge.host import cgroups
from bridge.host.cgroup_paths import CgroupLayout, CgroupMount


async def test_cgroups_of_broken_off_trials_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = CgroupLayout({name: CgroupMount(tmp_path / name) for name in ("memory", "freezer")})
    for mount in layout.mounts.values():
        for name in ("cri-bridge-trial-old-0a0b0c0d", "cri-bridge-trial-young-0a0b0c0d"):
            (mount.point / name).mkdir(parents=True)
        os.utime(mount.point / "cri-bridge-trial-old-0a0b0c0d", (0, 0))
    monkeypatch.setattr(cgroups, "layout", lambda: layout)
    await orphans._abandoned_trials()
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*")}
    assert left == {"memory/cri-bridge-trial-young-0a0b0c0d", "freezer/cri-bridge-trial-young-0a0b0c0d"}


async def test_one_that_stays_is_told_and_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "cri-bridge-trial-old-0a0b0c0d"
    place.mkdir()
    (place / "a-file").touch()  # as one that is used: rmdir fails
    os.utime(place, (0, 0))
    monkeypatch.setattr(cgroups, "layout", lambda: CgroupLayout({"": CgroupMount(tmp_path)}))
    await orphans._abandoned_trials()
    assert "the cgroups of trials that were broken off can't be removed" in caplog.text
