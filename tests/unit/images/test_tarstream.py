"""The tar reader against archives by Python's tarfile and GNU tar's forms, split anywhere, damaged anyhow."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.images import tarstream
from bridge.images.tarstream import BadArchive, TarReader, number, parse_pax
from bridge.testing.images import Entry, directory, hardlink, symlink, tar

ENTRIES = [
    directory("d"),
    Entry("d/file", b"content" * 200, mode=0o4711, uid=5, gid=6, mtime=12.25),
    Entry("n" * 150 + "/" + "m" * 90, b"long"),
    Entry("ü", b"", uid=5_000_000, pax={"SCHILY.xattr.user.k": "v"}),
    symlink("s", "t" * 200),
    hardlink("h", "d/file"),
    Entry("fifo", type=tarfile.FIFOTYPE),
]


def split(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    position = 0
    while position < len(data):
        for size in sizes or [len(data)]:
            yield data[position : position + size]
            position += size


def read(data: bytes, sizes: list[int] = []) -> list[tuple[Any, ...]]:  # noqa: B006
    reader = TarReader(split(data, sizes))
    found: list[tuple[Any, ...]] = []
    for m in reader:
        content = b"".join(map(bytes, reader.content()))
        found.append((m.type, m.name, m.link, m.mode, m.uid, m.gid, m.mtime, tuple(m.xattrs), content))
    return found


def test_everything_tarfile_writes() -> None:
    found = read(tar(ENTRIES))
    assert [m[1].decode().rstrip("/") for m in found] == [e.name for e in ENTRIES]
    assert found[1][3:7] == (0o4711, 5, 6, 12_250_000_000)
    assert found[1][8] == b"content" * 200
    assert found[3][4] == 5_000_000
    assert found[3][7] == ((b"user.k", b"v"),)
    assert found[4][2] == b"t" * 200
    assert found[5][2] == b"d/file"


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_other_formats(form: int) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        info = tarfile.TarInfo("p" * 90 + "/" + "q" * 90)
        info.size, info.uid = 4, 5_000_000 if form == tarfile.GNU_FORMAT else 7
        archive.addfile(info, io.BytesIO(b"data"))
    ((_, name, _, _, uid, _, _, _, content),) = read(out.getvalue())
    assert (name, uid, content) == (info.name.encode(), info.uid, b"data")


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(1, 2000), min_size=1, max_size=6))
def test_splitting_changes_nothing(sizes: list[int]) -> None:
    assert read(tar(ENTRIES), sizes) == read(tar(ENTRIES))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=4), st.sets(st.integers(0, 6)))
def test_the_log_and_the_contents_make_the_archive_again(sizes: list[int], consumed: set[int]) -> None:
    data = tar(ENTRIES) + b"trailing"
    log: list[bytes] = []
    pieces: list[bytes] = []
    reader = TarReader(split(data, sizes), lambda part: (log.append(part), pieces.append(part)))
    for index, _ in enumerate(reader):
        if index in consumed:
            pieces.extend(map(bytes, reader.content()))
    assert b"".join(pieces) == data
    assert len(b"".join(log)) == len(data) - sum(len(ENTRIES[n].data) for n in consumed)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=300)
@given(st.data())
def test_damage_is_refused_or_read_but_never_anything_else(data: st.DataObject) -> None:
    raw = bytearray(tar(ENTRIES))
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    try:
        read(bytes(raw[:cut]))
    except BadArchive:
        return


@pytest.mark.parametrize("cut", [1, 511, 513, 1000])
def test_cut_archives_are_refused(cut: int) -> None:
    with pytest.raises(BadArchive):
        read(tar([Entry("a", b"x" * 600)])[:cut])


def test_an_end_at_a_member_boundary_is_an_end() -> None:
    assert len(read(tar([Entry("a", b"x" * 512)])[:1024])) == 1
    assert read(b"") == []
    assert read(bytes(1024)) == []


def test_numbers() -> None:
    assert number(b"0000755\0") == 0o755
    assert number(b"   7 \0\0\0") == 7
    assert number(bytes(8)) == 0
    assert number(b"\x80" + (1 << 40).to_bytes(11, "big")) == 1 << 40
    assert number(b"\xff" * 12) == -1
    with pytest.raises(BadArchive):
        number(b"9999999\0")


def test_pax_records() -> None:
    assert parse_pax(b"6 a=1\n6 b==\n8 c=\n=\n\n\0\0") == [(b"a", b"1"), (b"b", b"="), (b"c", b"\n=\n")]
    for broken in (b"a=1\n", b"99 a=1\n", b"6 a=1", b"6 a11\n", b"0 a=1\n", b"-6 a=1\n", b"3 \n"):
        with pytest.raises(BadArchive):
            parse_pax(broken)


@pytest.mark.parametrize(
    ("pax", "words"),
    [
        ({"size": "-1"}, "not a number"),
        ({"uid": "4294967295"}, "out of range"),
        ({"mtime": "1.x"}, "mtime"),
        ({"path": "a\0b"}, "NUL"),
        ({"GNU.sparse.map": "0,1"}, "without its size"),
        ({"GNU.sparse.map": "0,1,2", "GNU.sparse.size": "9"}, "odd"),
        ({"GNU.sparse.map": "0,5", "GNU.sparse.size": "3"}, "leaves the file"),
        ({"GNU.sparse.map": "4,2,0,2", "GNU.sparse.size": "9"}, "overlaps"),
        ({"GNU.sparse.map": "0,2", "GNU.sparse.size": "9"}, "archive holds"),
    ],
)
def test_bad_extended_headers(pax: dict[str, str], words: str) -> None:
    with pytest.raises(BadArchive, match=words):
        read(tar([Entry("a", b"four", pax=pax)]))


def test_an_extended_header_is_bounded() -> None:
    with pytest.raises(BadArchive, match="extended header of"):
        read(tar([Entry("a", pax={"comment": "x" * (tarstream.MAX_EXTENSION + 1)})]))
