"""Classes of block I/O out of the administrator's file."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.errors import ConfigError
from bridge.host import blockio

FULL = """
[[Classes.slow]]
Weight = 80
[[Classes.slow]]
Devices = ["/dev/vd?", "/dev/absent"]
ThrottleReadBps = "60M"
throttleWriteBps = "8Mi"
ThrottleReadIOPS = 100
ThrottleWriteIOPS = "1k"
Weight = "10"
[[Classes.plain]]
Weight = 1000
"""


def found(pattern: str) -> list[tuple[int, int]]:
    """Two disks that every pattern with vd finds."""
    return [(252, 0), (252, 16)] if "vd" in pattern else []


def written(tmp_path: Path, text: str, name: str = "classes.toml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def devices(**value: int) -> list[dict[str, int]]:
    return [{"major": 252, "minor": minor, **value} for minor in (0, 16)]


def test_a_full_file(tmp_path: Path) -> None:
    assert blockio.load(written(tmp_path, FULL), found) == {
        "slow": {
            "weight": 80,
            "weightDevice": devices(weight=10),
            "throttleReadBpsDevice": devices(rate=60_000_000),
            "throttleWriteBpsDevice": devices(rate=8 << 20),
            "throttleReadIOPSDevice": devices(rate=100),
            "throttleWriteIOPSDevice": devices(rate=1000),
        },
        "plain": {"weight": 1000},
    }


def test_json_with_keys_as_others_write_them(tmp_path: Path) -> None:
    text = '{"classes": {"x": [{"devices": ["/dev/vda"], "throttlereadbps": "1Gi"}]}}'
    assert blockio.load(written(tmp_path, text, "classes.json"), found) == {"x": {"throttleReadBpsDevice": devices(rate=1 << 30)}}


def test_the_yaml_of_others(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    text = "Classes:\n  x:\n  - Devices:\n    - /dev/vd*\n    ThrottleReadBps: 60M\n  - Weight: 10\n"
    assert blockio.load(written(tmp_path, text, "classes.yaml"), found) == {
        "x": {"throttleReadBpsDevice": devices(rate=60_000_000), "weight": 10}
    }
    with pytest.raises(ConfigError, match="mapping"):
        blockio.load(written(tmp_path, "a: b: c", "bad.yml"), found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Classes = 1", "must be a table"),
        ("[Classes]\nx = 1", "class 'x': must be a list"),
        ("[[Classes.x]]\nWeigth = 1", "class 'x': unknown key 'weigth'"),
        ("[[Classes.x]]\nWeight = 5", "Weight 5 is not between 10 and 1000"),
        ("[[Classes.x]]\nThrottleReadBps = 1", "a throttle needs Devices"),
        ('[[Classes.x]]\nDevices = ["vda"]', "absolute paths"),
        ('[[Classes.x]]\nDevices = ["/dev/vda"]\nThrottleReadBps = "fast"', "'fast' is not a number"),
        ("[Other]", "unknown key 'other'"),
        ("[[", "Invalid"),
    ],
)
def test_mistakes_name_the_file_and_the_class(tmp_path: Path, text: str, words: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError, match=words) as caught:
        blockio.load(path, found)
    assert str(path) in str(caught.value)


def test_an_absent_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        blockio.load(tmp_path / "absent")


def test_devices_of_this_host(tmp_path: Path) -> None:
    node = tmp_path / "disk"
    node.write_text("")
    assert blockio.block_devices(str(tmp_path / "*")) == []
    disks = list(Path("/sys/block").glob("*/dev"))
    expected = [tuple(map(int, path.read_text().split(":"))) for path in disks if (Path("/dev") / path.parent.name).exists()]
    assert set(blockio.block_devices("/dev/*")) >= set(expected)
