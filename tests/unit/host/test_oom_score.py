"""OOM scores on a recorded /proc: who gets one, and who is left alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bridge.errors import HostError
from bridge.host import oom_score


def recorded(root: Path, scores: dict[int, int]) -> tuple[Path, Path]:
    """A /proc and a cgroup directory with these processes."""
    proc, cgroup = root / "proc", root / "cgroup"
    for pid, score in scores.items():
        (proc / str(pid)).mkdir(parents=True)
        (proc / str(pid) / "oom_score_adj").write_text(f"{score}\n")
    (cgroup / "child").mkdir(parents=True)
    first, *others = scores
    (cgroup / "cgroup.procs").write_text(f"{first}\n4242\n")
    (cgroup / "child" / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in others))
    return proc, cgroup


def test_all_of_the_cgroup_get_it_and_one_that_has_ended_is_no_error(tmp_path: Path) -> None:
    proc, cgroup = recorded(tmp_path, {11: -999, 12: 5, 13: 300})
    oom_score.give_all([cgroup], 300, proc=proc)
    assert [oom_score.of(pid, proc=proc) for pid in (11, 12, 13, 4242)] == [300, 300, 300, None]


def test_what_the_kernel_refuses_names_process_and_score(tmp_path: Path) -> None:
    proc, cgroup = recorded(tmp_path, {11: 0})
    file = proc / "11" / "oom_score_adj"
    file.unlink()
    file.mkdir()
    with pytest.raises(HostError, match=r"process 11: Is a directory"):
        oom_score.give_all([cgroup], 300, proc=proc)


def test_a_real_process() -> None:
    assert oom_score.of(os.getpid()) == int(Path("/proc/self/oom_score_adj").read_text())
