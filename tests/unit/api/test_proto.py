"""The committed generated code is what proto/ gives, and scripts/proto says so on any machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from grpc_tools import protoc

from .conftest import ROOT, SOURCES


def test_generated_code_is_current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binaries = Path(sys.executable).parent
    plugin = binaries / "protoc-gen-python_betterproto2"
    if not plugin.exists():
        pytest.fail("betterproto2_compiler is a development requirement")
    monkeypatch.chdir(ROOT)  # the compiler formats with the project's ruff settings
    monkeypatch.setenv("PATH", f"{binaries}{os.pathsep}{os.environ['PATH']}")
    argv = ["protoc", "-Iproto", f"--plugin={plugin.name}={plugin}", f"--python_betterproto2_out={tmp_path}"]
    every = sorted(str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto").rglob("*.proto"))
    for services, sources in {"async": sorted(SOURCES), "none": [path for path in every if path not in SOURCES]}.items():
        options = f"--python_betterproto2_opt=server_generation={services},client_generation=none"
        assert protoc.main([*argv, options, *sources]) == 0
    made = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*.py")}
    assert len(made) >= 20
    committed = ROOT / "src/bridge/_proto"
    for name, text in made.items():
        if text or name.parts != ("__init__.py",):
            assert (committed / name).read_text() == text, f"{name} is stale: run scripts/proto"


def test_serving_needs_no_grpcio_and_no_google_protobuf() -> None:
    """They are for tests only; grpcio alone would cost 9 MB."""
    code = "import sys, json, bridge.api.server, bridge.client; print(json.dumps(sorted(sys.modules)))"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}
    )
    loaded = json.loads(answer.stdout)
    assert not [name for name in loaded if name == "grpc" or name.startswith(("grpc.", "google.protobuf"))]
