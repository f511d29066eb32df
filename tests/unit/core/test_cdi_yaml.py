"""CDI specs in YAML, as vendors' tools write them (nvidia-ctk does)."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest

from bridge.core.cdi_spec import parse
from bridge.errors import ConfigError
from tests.unit.core.test_cdi_spec import WHOLE

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("yaml") is None and not os.environ.get("CI"), reason="PyYAML is missing: scripts/test installs it"
)

SPEC = """\
---
cdiVersion: 0.5.0
kind: vendor.com/gpu
devices:
- name: "0"
  containerEdits:
    deviceNodes:
    - path: /dev/gpu0
      fileMode: 0660
      uid: 0
- name: 1
  containerEdits: {env: [GPU=1]}
- name: all
  containerEdits: &edits
    env: [GPU=all]
- name: every
  containerEdits:
    <<: *edits
containerEdits:
  hooks:
  - args: [nvidia-cdi-hook, update-ldcache]
    hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
"""


def test_a_spec() -> None:
    spec = parse(Path("/etc/cdi/nvidia.yaml"), 0, SPEC.encode())
    assert spec.kind == "vendor.com/gpu"
    assert spec.devices["0"].nodes == ({"path": "/dev/gpu0", "fileMode": 0o660, "uid": 0},)
    assert spec.devices["1"].env == ("GPU=1",)
    assert spec.devices["all"].env == spec.devices["every"].env == ("GPU=all",)
    assert spec.edits.hooks[0]["args"] == ["nvidia-cdi-hook", "update-ldcache"]


def test_json_is_yaml() -> None:
    text = json.dumps(WHOLE).encode()
    path = Path("/etc/cdi/a")
    assert parse(path.with_suffix(".yaml"), 0, text).devices == parse(path.with_suffix(".json"), 0, text).devices


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "is not YAML"),
        ("kind: a/b\nkind: a/c\n", "a key occurs twice: 'kind'"),
        ("kind: !!python/object/apply:os.system [id]", "is not YAML"),
        ("? [a]\n: b\n", "is not YAML"),
        ("- a", "must be an object"),
        ("", "must be an object"),
        ("cdiVersion: 0.5\nkind: a/b\ndevices: []", "cdiVersion: must be a string"),
        ("\x00", "is not YAML"),
    ],
)
def test_what_is_no_spec(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse(Path("/etc/cdi/a.yaml"), 0, text.encode())
