"""A short run of the soak, so that it works when it is needed, and a leak of each cycle is noticed at once."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from benchmarks import soak
from benchmarks.servers import Options
from benchmarks.workspace import Workspace

pytestmark = pytest.mark.root


async def test_sixty_pods_leave_nothing(crun_hierarchy: None) -> None:
    path = shutil.which("crun")  # the faster one
    assert path is not None
    with Workspace() as workspace:
        samples = await soak.soak(workspace, Options(Path(path), Path("/usr/lib/cni")), cycles=40, at_once=3, samples=2)
    assert soak.faults(samples) == [], soak.markdown(samples)
    assert samples[-1].cycles == 60


def test_the_verdict_names_what_grew() -> None:
    first = soak.Sample(0, 0.0, 20, 10, 8, 15, 1, 18, 34, 4000, 40.0, 12.0)
    assert soak.faults([first, dataclasses.replace(first, cycles=100, database_kib=4200, server_mib=42.0, server_fds=21)]) == []
    grown = dataclasses.replace(first, cycles=100, server_fds=120, mounts=2, files=19, cgroups=35, tasks=115, server_mib=45.0)
    assert [line.split(":")[0] for line in soak.faults([first, grown])] == [
        "server_fds",
        "tasks",
        "mounts",
        "files",
        "cgroups",
        "server_mib",
    ]
    assert "server_fds: 20 became 120 in 100 cycles" in soak.faults([first, grown])
