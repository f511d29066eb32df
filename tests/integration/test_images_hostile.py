"""Hostile layers against the real unpacking child: refused with a typed error, or made harmless; nothing outside is touched."""

from __future__ import annotations

import gzip
import os
import stat
import sys
import tarfile
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import anyio
import pytest

from bridge.errors import CorruptData, HostError, LimitExceeded
from bridge.images.settings import Limits
from bridge.images.unpack import Unpacked, Unpacker, import_path
from bridge.testing.images import Entry, compress, digest, directory, hardlink, symlink, tar

pytestmark = pytest.mark.root


async def pieces(data: bytes, size: int = 65536) -> AsyncGenerator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def unpack(tmp_path: Path, entries: Sequence[Entry] | bytes, compression: str = "gzip", **limits: int) -> Unpacked:
    data = entries if isinstance(entries, bytes) else compress(tar(entries), compression)
    return await Unpacker(Limits(**limits)).unpack(tmp_path / "layer", pieces(data), digest(data))


@pytest.fixture
def outside(tmp_path: Path):
    """A file beside the layer that nothing may touch."""
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    yield victim
    assert victim.read_text() == "untouched"
    assert not os.path.lexists("/bridge-escaped")
    assert sorted(os.listdir(tmp_path)) in (["layer", "victim"], ["victim"])


@pytest.mark.parametrize(
    "entries",
    [
        [Entry("../victim", b"gotcha")],
        [Entry("a/../../victim", b"gotcha")],
        [Entry("..", type=tarfile.DIRTYPE)],
        [directory("a"), Entry("a/..", b"x")],
        [hardlink("link", "../victim")],
        [hardlink("link", "../../../../etc/passwd")],
        [hardlink("link", "missing")],
        [Entry("self", b""), hardlink("self", "self")],
        [directory("d"), hardlink("link", "d")],
        [Entry("file", b""), Entry("file/below", b"")],
        [symlink("dangling", "/nowhere/at/all"), Entry("dangling/x", b"")],
        [symlink("loop", "loop"), Entry("loop/x", b"")],
        [Entry("", b"root as a file")],
        [Entry("x" * 256, b"")],
        [Entry("/".join(["d" * 200] * 25), b"")],
        [Entry(".wh.", b"")],
        [Entry("a/.wh...", b"")],
        [Entry(".wh.x/below", b"")],
        [Entry(".wh.dev"), hardlink("link", "dev")],
        [Entry("unknown", b"", type=b"Z")],
    ],
    ids=lambda entries: entries[-1].name[:24] + "+" + entries[-1].link[:16],
)
async def test_refused(tmp_path: Path, outside: Path, entries: list[Entry]) -> None:
    with pytest.raises(CorruptData, match="archive is refused"):
        await unpack(tmp_path, entries)


async def test_absolute_names_and_links_stay_inside(tmp_path: Path, outside: Path) -> None:
    entries = [
        Entry("/bridge-escaped", b"inside"),
        symlink("up", "../../../../../../.."),
        Entry("up/through", b"inside"),
        symlink("abs", "/"),
        Entry("abs/also", b"inside"),
        symlink("victim-link", str(outside)),
        Entry("victim-link", b"replaces the link"),
    ]
    result = await unpack(tmp_path, entries)
    files = tmp_path / "layer/fs"
    assert sorted(os.listdir(files)) == ["abs", "also", "bridge-escaped", "through", "up", "victim-link"]
    assert not (files / "victim-link").is_symlink()
    assert result.exact is False


async def test_devices_are_left_out_and_overlay_attributes_too(tmp_path: Path) -> None:
    entries = [
        Entry("disk", type=tarfile.BLKTYPE, device=(8, 0)),
        Entry("null", type=tarfile.CHRTYPE, device=(1, 3)),
        Entry("forged-whiteout", type=tarfile.CHRTYPE, device=(0, 0)),
        Entry("fifo", type=tarfile.FIFOTYPE, mode=0o640),
        Entry("d", type=tarfile.DIRTYPE, mode=0o755, pax={"SCHILY.xattr.trusted.overlay.redirect": "/etc", "SCHILY.xattr.user.ok": "1"}),
        Entry("f", b"", pax={"SCHILY.xattr.security.selinux": "x", "SCHILY.xattr.user.overlay.metacopy": "x"}),
    ]
    result = await unpack(tmp_path, entries)
    files = tmp_path / "layer/fs"
    assert sorted(os.listdir(files)) == ["d", "f", "fifo"]
    assert os.listxattr(files / "d") == ["user.ok"]
    assert os.listxattr(files / "f") == []
    assert result.skipped == 6


async def test_what_honest_layers_hold(tmp_path: Path) -> None:
    # VFS_CAP_REVISION_2 with the effective bit and cap_net_raw permitted, as ping has it.
    capability = b"\x01\x00\x00\x02\x00\x20\x00\x00" + bytes(12)
    long = "/".join(["long" * 20] * 5)
    entries = [
        Entry("setuid", b"x", mode=0o4755, uid=1000, gid=100, mtime=1.5),
        Entry("ping", b"p", uid=3, mode=0o755, pax={"SCHILY.xattr.security.capability": capability.decode("latin-1")}),
        hardlink("again", "setuid"),
        symlink("link", "/anywhere/../x"),
        Entry("sticky", type=tarfile.DIRTYPE, mode=0o1777, mtime=7),
        Entry("sticky/in", b""),
        Entry(long, b"long"),
        Entry("ümläut", b"", uid=3_000_000),
        Entry("empty", b""),
    ]
    result = await unpack(tmp_path, entries, "zstd")
    files = tmp_path / "layer/fs"
    found = (files / "setuid").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, found.st_mtime, found.st_nlink) == (0o4755, 1000, 100, 1.5, 2)
    assert os.getxattr(files / "ping", "security.capability").startswith(b"\x01\x00\x00\x02\x00\x20")
    assert os.readlink(files / "link") == "/anywhere/../x"
    assert ((files / "sticky").stat().st_mtime, stat.S_IMODE((files / "sticky").stat().st_mode)) == (7, 0o1777)
    assert (files / long).read_text() == "long"
    assert (files / "ümläut").stat().st_uid == 3_000_000
    assert result.exact
    assert result.inodes == sum(len(d) + len(f) for _, d, f in os.walk(files)) + 1 - 1  # the root, and one file with two names


async def test_the_last_of_a_repeated_name_wins(tmp_path: Path) -> None:
    entries = [
        Entry("f", b"first"),
        Entry("f", b"second"),
        directory("d"),
        Entry("d/deep/er", b""),
        symlink("d", "elsewhere"),
        symlink("s", "a"),
        directory("s"),
        Entry("s/in", b""),
        directory("s", 0o700),
    ]
    result = await unpack(tmp_path, entries)
    files = tmp_path / "layer/fs"
    assert (files / "f").read_text() == "second"
    assert os.readlink(files / "d") == "elsewhere"
    assert stat.S_IMODE((files / "s").lstat().st_mode) == 0o700
    assert (files / "s/in").exists()
    assert not result.exact
    assert result.inodes == sum(len(d) + len(f) for _, d, f in os.walk(files)) + 1


async def test_sparse_files_keep_their_holes(tmp_path: Path) -> None:
    source = tmp_path / "sparse"
    with source.open("wb") as file:
        for at in (0, 5 << 20, 9 << 20):
            file.seek(at)
            file.write(b"x" * 5000)
        file.truncate(12 << 20)
    for number, flags in enumerate((["--format=gnu"], *(["--format=posix", f"--sparse-version={v}"] for v in ("0.0", "0.1", "1.0")))):
        archive = tmp_path / f"{number}.tar"
        await anyio.run_process(["tar", "-C", str(tmp_path), "-S", *flags, "-cf", str(archive), "sparse"])
        work = tmp_path / str(number)
        work.mkdir()
        result = await unpack(work, archive.read_bytes())
        made = work / "layer/fs/sparse"
        assert made.read_bytes() == source.read_bytes()
        assert made.stat().st_blocks * 512 <= 64 << 10
        assert result.disk_bytes <= 64 << 10


async def test_bombs(tmp_path: Path) -> None:
    zeros = tar([Entry("zeros", bytes(200 << 20))])
    for name, data, limits, words in (
        ("bytes", compress(zeros, "gzip"), {"layer_bytes": 50 << 20}, "more than 52428800 bytes"),
        ("ratio", compress(zeros, "zstd"), {"ratio": 100}, "100 times"),
        ("entries", compress(tar([Entry(f"f{n}") for n in range(200)]), "gzip"), {"layer_entries": 100}, "more than 100 entries"),
    ):
        work = tmp_path / name
        work.mkdir()
        with pytest.raises(LimitExceeded, match=words):
            await unpack(work, data, **limits)  # type: ignore[arg-type]


async def test_a_hole_counts_as_bytes(tmp_path: Path) -> None:
    header = tarfile.TarInfo("hole")
    header.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 50)}
    content = b"0\n".ljust(512, b"\0")
    header.size = len(content)
    data = header.tobuf(tarfile.PAX_FORMAT) + content + bytes(1024)
    with pytest.raises(LimitExceeded, match="files have more than"):
        await unpack(tmp_path, data)


@pytest.mark.parametrize("cut", [10, 600, 5000])
async def test_cut_streams(tmp_path: Path, cut: int) -> None:
    whole = tar([Entry("a", b"1" * 700), Entry("b", os.urandom(7000))])
    squeezed = gzip.compress(whole)
    for number, data in enumerate((whole[:cut], squeezed[:cut], squeezed[:-4] + bytes(4), b"\x1f\x8brubbish" * 9)):
        work = tmp_path / str(number)
        work.mkdir()
        with pytest.raises(CorruptData):
            await unpack(work, data)


async def test_a_wrong_digest_is_damage(tmp_path: Path) -> None:
    data = compress(tar([Entry("a", b"1")]), "gzip")
    with pytest.raises(CorruptData, match="is damaged"):
        await Unpacker(Limits()).unpack(tmp_path / "layer", pieces(data), "sha256:" + "0" * 64)


async def test_leaving_kills_the_child_and_closes_its_descriptors(tmp_path: Path) -> None:
    async def endless() -> AsyncGenerator[bytes]:
        yield compress(tar([Entry("a", b"1")]), "")[:700]
        await anyio.sleep_forever()

    before = set(os.listdir("/proc/self/fd"))
    with anyio.move_on_after(0.3) as scope:
        await Unpacker(Limits()).unpack(tmp_path / "layer", endless(), None)
    assert scope.cancelled_caught
    assert len(set(os.listdir("/proc/self/fd")) - before) <= 1
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert not [pid for pid in children if "unpack_child" in Path(f"/proc/{pid}/cmdline").read_text()]


async def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "layer").write_text("in the way")
    with pytest.raises(HostError):
        await unpack(tmp_path, [Entry("a", b"1")])


async def test_the_child_is_confined(tmp_path: Path) -> None:
    """What a child that was taken over could reach: nothing but the layer, no network, no more chroot."""
    probe = (
        "import os, socket, sys; sys.path[:0] = sys.argv[1].split(':'); from bridge.images import confine; confine.enter(sys.argv[2])\n"
        "print(os.listdir('/'), os.path.exists('/../etc'), [name for _, name in socket.if_nameindex()], flush=True)\n"
        "os.chroot('/')\n"
    )
    layer = tmp_path / "layer"
    layer.mkdir()
    result = await anyio.run_process([sys.executable, "-I", "-S", "-c", probe, import_path(), str(layer)], check=False)
    assert result.stdout.decode().strip() == "[] False ['lo']"
    assert "PermissionError" in result.stderr.decode()
