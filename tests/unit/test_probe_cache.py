"""What a probe found is kept for as long as nothing that it rests on has changed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from bridge import probe_cache
from bridge.errors import HostError
from bridge.ports.abilities import Ability, Feature, RuntimeFeatures, Support

FOUND = RuntimeFeatures("1.0", "/bin/it", {Ability.EXEC: Feature(Support.EMULATED, "tried")}, ("io.example/*",))
IDENTITY = {"v": 1, "argv": ["it"]}


def test_what_was_kept_is_what_was_found(tmp_path: Path) -> None:
    cache = tmp_path / "probe.json"
    assert probe_cache.load(cache, IDENTITY) is None
    probe_cache.save(cache, IDENTITY, FOUND, verbs=["run"])
    assert probe_cache.load(cache, IDENTITY) == (FOUND, {"verbs": ["run"]})
    assert list(tmp_path.iterdir()) == [cache]


def test_another_identity_is_probed_anew(tmp_path: Path) -> None:
    probe_cache.save(tmp_path / "probe.json", IDENTITY, FOUND)
    assert probe_cache.load(tmp_path / "probe.json", {**IDENTITY, "v": 2}) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: "{",
        lambda kept: "[]",
        lambda kept: json.dumps({**kept, "features": None}),
        lambda kept: json.dumps({**kept, "features": {**kept["features"], "abilities": {"fly": {"support": "supported", "detail": ""}}}}),
        lambda kept: json.dumps({name: value for name, value in kept.items() if name != "more"}),
    ],
)
def test_what_cannot_be_read_is_probed_anew(tmp_path: Path, damage: Any) -> None:
    cache = tmp_path / "probe.json"
    probe_cache.save(cache, IDENTITY, FOUND)
    cache.write_text(damage(json.loads(cache.read_text())))
    assert probe_cache.load(cache, IDENTITY) is None


def test_a_binary_is_known_by_its_file(tmp_path: Path) -> None:
    binary = tmp_path / "runtime"
    with pytest.raises(HostError, match="No such file") as failure:
        probe_cache.surroundings(binary)
    assert str(binary) in str(failure.value)
    binary.write_text("one")
    first = probe_cache.surroundings(binary)
    assert probe_cache.surroundings(binary) == first
    os.utime(binary, ns=(1, 1))
    assert probe_cache.surroundings(binary) != first
