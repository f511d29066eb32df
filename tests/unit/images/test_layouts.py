"""The image builder that tests and the demonstration share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bridge.errors import HostError
from bridge.images import decompress
from bridge.images.decompress import BadStream, Source, TooBig
from bridge.testing.images import REF_NAME, compress, write_busybox_layout


def test_the_same_bytes_every_time_and_every_blob_is_its_digest(tmp_path: Path) -> None:
    binary = tmp_path / "busybox"
    binary.write_bytes(b"\x7fELF and so on")
    first = write_busybox_layout(tmp_path / "a", busybox=binary)
    assert write_busybox_layout(tmp_path / "b", busybox=binary) == first
    assert write_busybox_layout(tmp_path / "c", busybox=binary, config={"User": "7"}) != first
    (entry,) = json.loads((tmp_path / "a/index.json").read_text())["manifests"]
    assert (entry["digest"], entry["annotations"][REF_NAME]) == (first, "localhost/busybox:latest")
    with pytest.raises(HostError, match="busybox-static"):
        write_busybox_layout(tmp_path / "d", busybox=tmp_path / "none")


def decompressed(data: bytes, piece: int, limit: int = 1 << 40, ratio: int = 1 << 40) -> bytes:
    view = memoryview(data)
    position = 0

    def read(size: int) -> bytes:
        nonlocal position
        start, position = position, position + min(size, piece)
        return bytes(view[start:position])

    source = Source(read)
    return b"".join(decompress.limited(decompress.open_stream(source), source, limit, ratio))


@pytest.mark.parametrize("compression", ["", "gzip", "zstd"])
@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_every_format_in_pieces_of_any_size(compression: str, piece: int) -> None:
    data = b"some layer " * 500
    packed = compress(data, compression)
    assert decompressed(packed, piece) == data
    assert decompressed(b"", piece) == b""
    if compression:
        assert decompressed(packed + packed, piece) == data + data
        with pytest.raises(BadStream):
            decompressed(packed + b"junk that follows", piece)


def test_limits_stop_a_bomb_early_and_spare_short_runs() -> None:
    zeros = bytes(80 << 20)
    with pytest.raises(TooBig, match="more than 1000 bytes"):
        decompressed(compress(zeros, "zstd"), 1 << 20, limit=1000)
    with pytest.raises(TooBig, match="50 times"):
        decompressed(compress(zeros, "gzip"), 1 << 20, ratio=50)
    assert len(decompressed(compress(zeros[: 32 << 20], "zstd"), 1 << 20, ratio=50)) == 32 << 20
