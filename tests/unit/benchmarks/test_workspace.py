"""A benchmark leaves nothing behind, whatever lived in it."""

import os
import subprocess
from pathlib import Path

import pytest

from benchmarks.workspace import Workspace

pytestmark = pytest.mark.root


def test_a_workspace_takes_its_processes_mounts_and_cgroups_along(tmp_path: Path) -> None:
    with Workspace(tmp_path) as workspace:
        assert os.path.ismount(workspace.run_directory())
        assert not os.path.ismount(workspace.directory("containerd"))
        process = subprocess.Popen(["sleep", "60"], start_new_session=True)
        workspace.adopt("containerd", process.pid)
        assert workspace.processes("containerd") == [process.pid]
        workspace.make_pod_cgroup("containerd", "uid")
        workspace.remove_pod_cgroup("containerd", "uid")
        tops = [mount / workspace.name for mount in set(workspace.hierarchies.values())]
        assert any(top.is_dir() for top in tops)
    assert process.wait(5) == -9
    assert not any(top.exists() for top in tops)
    assert list(tmp_path.iterdir()) == []
