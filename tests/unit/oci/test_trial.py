from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bridge.errors import HostError, RuntimeFailed
from bridge.host.process import Completed
from bridge.oci import trial
from bridge.oci.cli import OciCli, OciSettings


async def test_what_went_wrong_is_told_also_when_the_tidying_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def failing(self: OciCli, verb: str, *args: str, timeout: float) -> Completed:
        return Completed(1, b"", b"no luck" if verb == "run" else b"")

    def busy(cgroup: str, **_: Any) -> None:
        raise HostError(f"cgroup {cgroup} is still in use")

    monkeypatch.setattr(OciCli, "run", failing)
    monkeypatch.setattr("bridge.oci.trial.cgroups.remove", busy)
    cli = OciCli(OciSettings("h", Path("/bin/x"), tmp_path / "root"))
    with pytest.raises(RuntimeFailed, match=r"'h': trial run failed \(exit code 1\): no luck"):
        await trial.trial(cli, tmp_path / "bundle", seccomp=False, timeout=5)
    assert "what is left of a failed trial of handler h can't be removed" in caplog.text
    assert not (tmp_path / "bundle").exists()
