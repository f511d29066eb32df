"""The mode of a container's root directory in CRIU's images, and files that are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.images.criu_files import root_mode


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return bytes([number << 3 | 2, len(value)]) + value
    coded = bytearray([number << 3])
    while value > 0x7F:
        coded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*coded, value])


def entry(name: bytes, mode: int) -> bytes:
    reg = field(1, 3) + field(2, 0o100000) + field(5, field(1, 0)) + field(6, name) + field(10, mode)
    whole = field(1, 1) + field(2, 3) + field(3, reg)
    return len(whole).to_bytes(4, "little") + whole


def written(directory: Path, *entries: bytes) -> Path:
    (directory / "files.img").write_bytes(b"\x19CVT810V" + b"".join(entries))
    return directory


@pytest.mark.parametrize("name", [b"/", b"."])
def test_the_root_directorys_mode(tmp_path: Path, name: bytes) -> None:
    pipe = field(1, 2) + field(2, 4) + field(4, b"")
    other = len(pipe).to_bytes(4, "little") + pipe
    found = written(tmp_path, entry(b"/bin/busybox", 0o100755), other, entry(name, 0o040555))
    assert root_mode(found) == 0o555


def test_nothing_tells(tmp_path: Path) -> None:
    assert root_mode(tmp_path) is None
    assert root_mode(written(tmp_path)) is None
    assert root_mode(written(tmp_path, entry(b"/tmp", 0o041777), entry(b"/", 0o100644))) is None
    for damage in (b"\xff\xff\xff\xff\x01", b"\x02\x00\x00\x00\x0f\x00", b"\x0b\x00\x00\x00" + b"\xff" * 11, b"\x01\x00\x00\x00\x80"):
        assert root_mode(written(tmp_path, damage)) is None
    (tmp_path / "files.img").unlink()
    (tmp_path / "files.img").symlink_to("/etc/passwd")
    assert root_mode(tmp_path) is None
