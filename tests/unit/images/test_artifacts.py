"""Which files an artifact has, and how a file is put into a tar."""

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import CorruptData
from bridge.images.artifacts import ArtifactFile, files, idents
from bridge.images.manifest import TITLE, Descriptor, Manifest

DIGEST = "sha256:" + "a" * 64
CONFIG = Descriptor("application/vnd.oci.empty.v1+json", DIGEST, 2)


def manifest(*titles: str | None, key: str = TITLE) -> Manifest:
    layers = [Descriptor("x/y", DIGEST, 3, annotations={} if title is None else {key: title}) for title in titles]
    return Manifest(CONFIG, layers, "a/b")


@pytest.mark.parametrize(
    ("title", "path"),
    [
        ("a.txt", "a.txt"), ("./a//b.txt", "a/b.txt"), ("a b/c", "a b/c"), ("..a", "..a"), ("ü" * 100, "ü" * 100),
        ("x" * 255, "x" * 255), (None, "sha256-" + "a" * 64), ("", "sha256-" + "a" * 64),
    ],
)  # fmt: skip
def test_names(title: str | None, path: str) -> None:
    (file,) = files(manifest(title))
    assert (file.path, file.size, file.digest) == (path, 3, DIGEST)


def test_the_model_specs_name() -> None:
    assert files(manifest("m/w.bin", key="org.cnai.model.filepath"))[0].path == "m/w.bin"


@pytest.mark.parametrize(
    ("titles", "words"),
    [
        (("../a",), "must be a relative path without '..'"), (("a/../../b",), "without '..'"), (("/etc/passwd",), "relative path"),
        (("..",), "relative path"), ((".",), "relative path"), (("a", "/"), r"layers\[1\].annotations: the title '/'"),
        (("a", "a"), "two files are called 'a'"), (("a", "./a"), "two files are called 'a'"),
        ((None, None), "two files are called 'sha256-"),
        (("a", "a/b"), "'a' is a file, and 'a/b' lies below it"), (("a/b/c", "a"), "'a' is a file, and 'a/b/c' lies below it"),
        (("a\0b",), "no name that a file can have"), (("a\nb",), "no name"), (("\ud800",), "no name"), (("x" * 256,), "no name"),
        (("d/.wh.a",), "no name"), ((".wh..wh..opq",), "no name"), (("/".join(["x" * 200] * 21),), "too long"),
    ],
)  # fmt: skip
def test_refused_names(titles: tuple[str | None, ...], words: str) -> None:
    with pytest.raises(CorruptData, match=words):
        files(manifest(*titles))


@given(st.text(max_size=80), st.text(max_size=80))
def test_whatever_a_title_is_no_name_leads_out(one: str, other: str) -> None:
    try:
        found = files(manifest(one, other))
    except CorruptData:
        return
    for file in found:
        parts = file.path.split("/")
        assert not {"", ".", ".."} & set(parts)
        assert not any(part.startswith(".wh.") for part in parts)
        (member,) = read(file, b"abc").getmembers()
        assert (member.name, member.size, member.mode, member.uid, member.type) == (file.path, 3, 0o644, 0, tarfile.REGTYPE)


def read(file: ArtifactFile, content: bytes) -> tarfile.TarFile:
    return tarfile.open(fileobj=io.BytesIO(file.head() + content + file.tail()), mode="r:")


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513])
def test_head_and_tail_make_a_whole_tar(size: int) -> None:
    file = ArtifactFile("a/b", size, DIGEST)
    archive = read(file, b"x" * size)
    found = archive.extractfile("a/b")
    assert found is not None
    assert found.read() == b"x" * size
    assert len(file.head() + bytes(size) + file.tail()) % 512 == 0


def test_what_stands_for_the_diff_id_tells_paths_and_contents_apart() -> None:
    one, other = ArtifactFile("a", 3, DIGEST), ArtifactFile("b", 3, DIGEST)
    changed = ArtifactFile("a", 3, "sha256:" + "b" * 64)
    assert len(set(idents([one, other, changed]))) == 3
    assert idents([one]) == idents([ArtifactFile("a", 3, DIGEST)])
