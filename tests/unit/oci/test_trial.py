from __future__ import annotations

from pathlib import Path

import pytest

from bridge.errors import HostError, RuntimeFailed
from bridge.host import cgroups
from bridge.host.process import Completed
from bridge.oci import trial
from bridge.oci.cli import OciCli, OciSettings


async def test_what_went_wrong_is_told_also_when_the_tidying_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def failing(self: OciCli, verb: str, *args: str, timeout: float) -> Completed:
        return Completed(1, b"", b"no luck" if verb == "run" else b"")

    def busy(cgroup: str, _timeout: float) -> None:
        raise HostError(f"cgroup {cgroup} is still in use")

    monkeypatch.setattr(OciCli, "run", failing)
    monkeypatch.setattr("bridge.oci.trial.strays.end_cgroup", busy)
    cli = OciCli(OciSettings("h", Path("/bin/x"), tmp_path / "root"))
    with pytest.raises(RuntimeFailed, match=r"'h': trial run failed \(exit code 1\): no luck"):
        await trial.trial(cli, tmp_path / "bundle", seccomp=False, timeout=5)
    assert "what is left of a failed trial of handler h can't be removed" in caplog.text
    assert not (tmp_path / "bundle").exists()


HANGS = """#!/bin/sh
case "$*" in
*" run "*) for last; do :; done ;;
*) exit 1 ;;
esac
mkdir $TOP$last
setsid sh -c "echo \\$\\$ > $TOP$last/cgroup.procs; exec sleep 1000" &
while [ -z "$(cat $TOP$last/cgroup.procs)" ]; do sleep 0.01; done
echo $last > $NOTE
sleep 1000
"""


@pytest.mark.root
async def test_a_trial_that_hangs_leaves_neither_its_container_nor_its_cgroup(tmp_path: Path) -> None:
    mount = cgroups.layout().mounts["" if cgroups.is_v2() else "freezer"]
    note, runtime = tmp_path / "note", tmp_path / "runtime"
    runtime.write_text(HANGS.replace("$TOP", f"{mount.directory('/')}/").replace("$NOTE", str(note)))
    runtime.chmod(0o755)
    cli = OciCli(OciSettings("h", runtime, tmp_path / "root"))
    with pytest.raises(RuntimeFailed, match="timed out"):
        await trial.trial(cli, tmp_path / "bundle", seccomp=False, timeout=3)
    directory = mount.directory(f"/{note.read_text().strip()}")
    assert directory.name.startswith("cri-bridge-trial-h-")
    assert not directory.exists()
