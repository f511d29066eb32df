"""New limits: what the runtime is told, and that the bundle tells the truth also when it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bridge.errors import HostError, RuntimeFailed
from bridge.oci import limits
from bridge.oci.cli import OciCli, OciSettings

CONFIG = {"process": {"args": ["x"]}, "linux": {"resources": {"cpu": {"shares": 10, "quota": 5000}, "devices": [{"allow": False}]}}}


def runtime(tmp_path: Path, code: int = 0) -> OciCli:
    """One that writes down what it was told, and ends with ``code``."""
    script = tmp_path / "runtime"
    script.write_text(f'#!/bin/sh\nwhile [ "$1" != --resources ]; do shift; done\ncat "$2" > {tmp_path}/told\necho busy >&2\nexit {code}\n')
    script.chmod(0o755)
    return OciCli(OciSettings("test", script, tmp_path / "state"))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    made = tmp_path / "bundle"
    made.mkdir()
    (made / "config.json").write_text(json.dumps(CONFIG))
    return made


def config(bundle: Path) -> Any:
    assert [path.name for path in bundle.iterdir()] == ["config.json"]
    return json.loads((bundle / "config.json").read_text())


async def test_the_runtime_is_told_what_changes_and_the_bundle_follows(tmp_path: Path, bundle: Path) -> None:
    await limits.update(runtime(tmp_path), bundle, "id", None, {"cpu": {"shares": 20}}, started=True)
    assert json.loads((tmp_path / "told").read_text()) == {"cpu": {"shares": 20}}
    assert config(bundle)["linux"]["resources"] == {"cpu": {"shares": 20, "quota": 5000}, "devices": [{"allow": False}]}
    assert config(bundle)["process"] == CONFIG["process"]


async def test_what_the_runtime_refuses_is_not_in_the_bundle(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(RuntimeFailed, match=r"update failed .*busy"):
        await limits.update(runtime(tmp_path, 1), bundle, "id", None, {"cpu": {"shares": 20}}, started=True)
    assert config(bundle) == CONFIG


async def test_before_the_start_only_the_bundle_changes(tmp_path: Path, bundle: Path) -> None:
    change = {"cpu": {"quota": -1}, "memory": {"limit": 5}}
    await limits.update(runtime(tmp_path), bundle, "id", "/cgroup", change, started=False)
    assert not (tmp_path / "told").exists()
    assert config(bundle)["linux"]["resources"] == {"cpu": {"shares": 10}, "memory": {"limit": 5}, "devices": [{"allow": False}]}


async def test_a_bundle_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="gone"):
        await limits.update(runtime(tmp_path), tmp_path / "gone", "id", None, {"cpu": {"shares": 20}}, started=True)
