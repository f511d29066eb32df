"""What must hold of every reference that is one, and of every archive that tarfile writes."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.images import reference
from bridge.images.tarstream import DIRECTORY, HARDLINK, REGULAR, SYMLINK, TarReader

_PLAIN = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
_LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
_DOMAIN = st.one_of(
    st.builds(lambda a, b: f"{a}.{b}", _LABEL, _LABEL),
    st.builds(lambda a, port: f"{a}:{port}", _LABEL, st.integers(1, 65535)),
    st.just("localhost"),
    st.just("[::1]:5000"),
)
_PATH = st.lists(st.from_regex(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+){0,2}", fullmatch=True), min_size=1, max_size=4).map("/".join)
_TAG = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,40}", fullmatch=True)
_DIGEST = st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)


@_PLAIN
@given(_DOMAIN, _PATH, st.none() | _TAG, st.none() | _DIGEST)
def test_a_reference_keeps_its_parts(domain: str, path: str, tag: str | None, digest: str | None) -> None:
    text = f"{domain}/{path}" + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")
    parsed = reference.parse(text)
    assert parsed.domain == domain
    assert parsed.path == path
    assert parsed.repository == f"{domain}/{path}"
    assert parsed.digest == (digest or "")
    assert parsed.tag == (tag or ("" if digest else "latest"))
    assert reference.parse(str(parsed)) == parsed
    assert parsed.canonical().canonical() == parsed.canonical()
    assert not (parsed.canonical().tag and parsed.canonical().digest)


_NAME = st.lists(
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60), min_size=1, max_size=5
)
_ENTRY = st.tuples(
    _NAME.map("/".join).filter(lambda name: name.strip("./")),
    st.sampled_from((tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE)),
    st.binary(max_size=1500),
    _NAME.map("/".join),
    st.integers(0, 0o7777),
    st.integers(0, 0xFFFFFFFE),
    st.integers(0, 1 << 33),
)
_TYPES = {tarfile.DIRTYPE: DIRECTORY, tarfile.SYMTYPE: SYMLINK, tarfile.LNKTYPE: HARDLINK}


def _chunks(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@_PLAIN
@given(st.lists(_ENTRY, max_size=6), st.sampled_from((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)), st.integers(1, 3000))
def test_what_tarfile_writes_is_read_as_it_was_meant(
    entries: list[tuple[str, bytes, bytes, str, int, int, int]], form: int, size: int
) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, kind, data, link, mode, owner, mtime in entries:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.uid, info.gid, info.mtime = kind, mode, owner, owner // 2, mtime
            info.linkname = link if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            info.size = len(data) if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(data))
    reader = TarReader(_chunks(out.getvalue(), size))
    for member, (name, kind, data, link, mode, owner, mtime) in zip(reader, entries, strict=True):
        assert member.name.decode().rstrip("/") == name.rstrip("/")
        assert member.type == _TYPES.get(kind, member.type)
        assert (member.type in REGULAR) == (kind == tarfile.REGTYPE)
        assert (member.mode, member.uid, member.gid, member.mtime) == (mode, owner, owner // 2, mtime * 1_000_000_000)
        assert b"".join(map(bytes, reader.content())) == (data if kind == tarfile.REGTYPE else b"")
        if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            assert member.link.decode() == link
