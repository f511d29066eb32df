"""Cgroups that are read again and again: what stays open, what is closed, and that each look is a new one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from bridge.host.cgroup_paths import CgroupLayout, CgroupMount
from bridge.host.cgroup_reader import CgroupReader

FILES = {
    "cpu.stat": "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 9\nnr_throttled 4\nthrottled_usec 6\n",
    "memory.current": "100\n",
    "memory.stat": "anon 8\nfile 4\ninactive_file 10\npgfault 7\npgmajfault 1\n",
    "memory.max": "max\n",
    "pids.current": "2\n",
}


def node(root: Path, *cgroups: str) -> CgroupLayout:
    for cgroup in cgroups:
        (root / cgroup).mkdir(parents=True)
        for name, text in FILES.items():
            (root / cgroup / name).write_text(text)
    return CgroupLayout({"": CgroupMount(root)})


def descriptors(root: Path) -> list[str]:
    """Open files of this process below ``root``."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
        if target.startswith(f"{root}/"):
            found.append(target)
    return found


def test_each_look_is_a_new_one_through_the_same_files(tmp_path: Path) -> None:
    reader = CgroupReader(on=node(tmp_path, "a"))
    assert reader.read("/a")[0].cpu_ns == 5000
    (tmp_path / "a/cpu.stat").write_text("usage_usec 9\n")
    opened = sorted(descriptors(tmp_path))
    found, details = reader.read("/a")
    assert (found.cpu_ns, found.processes, details) == (9000, 2, None)
    assert sorted(descriptors(tmp_path)) == opened
    assert len(opened) == reader.open_files == len(FILES)
    reader.close()
    assert (descriptors(tmp_path), reader.open_files) == ([], 0)
    assert reader.read("/a")[0].cpu_ns == 9000
    reader.close()


def test_only_those_that_still_run_keep_their_files(tmp_path: Path) -> None:
    reader = CgroupReader(on=node(tmp_path, "a", "b"))
    reader.read("/a")
    reader.read("/b")
    reader.keep_only({"/b", "/c"})
    assert {Path(each).parent.name for each in descriptors(tmp_path)} == {"b"}
    reader.close()


def test_what_is_read_once_leaves_nothing_open(tmp_path: Path) -> None:
    reader = CgroupReader(on=node(tmp_path, "a"))
    assert reader.read("/a", keep_open=False)[0].cpu_ns == 5000
    assert (descriptors(tmp_path), reader.open_files) == ([], 0)


@pytest.mark.parametrize("limit", [0, 2])
def test_more_cgroups_than_files_may_be_open(tmp_path: Path, limit: int) -> None:
    reader = CgroupReader(on=node(tmp_path, "a", "b"), limit=limit)
    for cgroup in ("/a", "/b", "/a", "/b"):
        assert reader.read(cgroup)[0].processes == 2
    assert len(descriptors(tmp_path)) == reader.open_files == limit
    reader.close()


def test_a_cgroup_that_is_gone_is_forgotten_and_one_of_the_same_name_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = CgroupReader(on=node(tmp_path))
    assert reader.read("/a")[0].memory is None
    node(tmp_path, "a")
    assert reader.read("/a")[0].processes == 2
    with monkeypatch.context() as patch:

        def gone(*_: object) -> bytes:  # what a cgroup's open files say; those of a directory on a disk stay readable
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

        patch.setattr(os, "pread", gone)
        assert reader.read("/a")[0].cpu_ns is None
    assert (descriptors(tmp_path), reader.open_files) == ([], 0)
    assert reader.read("/a")[0].processes == 2
    reader.close()


def test_details_come_from_the_same_files(tmp_path: Path) -> None:
    reader = CgroupReader(on=node(tmp_path, "a"))
    found, details = reader.read("/a", detailed=True)
    assert found.cpu_ns == 5000
    assert details is not None
    assert (details.cpu.user_ns, details.cpu.throttled_periods, details.memory.inactive_file) == (3000, 4, 10)
    reader.close()
