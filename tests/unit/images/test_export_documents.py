"""Manifests and indexes of exported images."""

from __future__ import annotations

import json
from typing import Any

from bridge.images import export_documents as made
from bridge.images.export_documents import Document, Named, Written
from bridge.images.manifest import Manifest, parse
from bridge.testing.images import digest

CONFIG = json.dumps({"architecture": "arm64", "os": "linux", "variant": "v8", "rootfs": {"type": "layers", "diff_ids": []}}).encode()
LAYER = Written("sha256:" + "1" * 64, "sha256:" + "2" * 64, 77, "gzip")


def image(*names: str, layer: Written = LAYER, **changes: Any) -> Named:
    document = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {"mediaType": "application/vnd.docker.container.image.v1+json", "digest": digest(CONFIG), "size": len(CONFIG)},
        "layers": [{"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "digest": LAYER.digest, "size": 77}],
        **changes,
    }
    manifest = json.dumps(document).encode()
    return Named(Document(digest(manifest), manifest), Document(digest(CONFIG), CONFIG), [layer], names)


def oci(*images: Named, archive: bool = True) -> dict[str, bytes]:
    return dict(made.oci(images, archive=archive))


def test_the_images_own_manifest_when_every_blob_is_the_same() -> None:
    one = image("example.com/a:1", "example.com/b:1")
    files = oci(one)
    assert files[made.blob_name(one.manifest.digest)] == one.manifest.data
    entries = json.loads(files["index.json"])["manifests"]
    assert [entry["annotations"]["io.containerd.image.name"] for entry in entries] == ["example.com/a:1", "example.com/b:1"]
    assert [entry["annotations"]["org.opencontainers.image.ref.name"] for entry in entries] == ["example.com/a:1", "example.com/b:1"]
    assert {entry["digest"] for entry in entries} == {one.manifest.digest}
    assert entries[0]["platform"] == {"architecture": "arm64", "os": "linux", "variant": "v8"}
    assert entries[0]["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"


def test_another_manifest_for_other_blobs_and_the_same_config() -> None:
    layer = Written(LAYER.diff_id, "sha256:" + "3" * 64, 99, "zstd")
    one = image("example.com/a:1", layer=layer, annotations={"k": "v"})
    (entry,) = json.loads(oci(one)["index.json"])["manifests"]
    data = oci(one)[made.blob_name(entry["digest"])]
    assert digest(data) == entry["digest"] != one.manifest.digest
    assert entry["size"] == len(data)
    parsed = parse(data)
    assert isinstance(parsed, Manifest)
    assert parsed.config.digest == one.config.digest
    assert [(y.media_type, y.digest, y.size) for y in parsed.layers] == [("application/vnd.oci.image.layer.v1.tar+zstd", layer.digest, 99)]
    assert json.loads(data)["annotations"] == {"k": "v"}


def test_a_name_with_a_digest_goes_with_that_manifest_only() -> None:
    same = image()
    named = Named(same.manifest, same.config, same.layers, [f"example.com/a@{same.manifest.digest}"])
    (entry,) = json.loads(oci(named)["index.json"])["manifests"]
    assert entry["annotations"]["io.containerd.image.name"] == named.names[0]
    other = Named(same.manifest, same.config, [Written(LAYER.diff_id, "sha256:" + "3" * 64, 99, "none")], named.names)
    (entry,) = json.loads(oci(other)["index.json"])["manifests"]
    assert "annotations" not in entry
    assert json.loads(oci(other)["manifest.json"])[0]["RepoTags"] is None


def test_dockers_list_stands_beside_the_index_in_an_archive_only() -> None:
    one = image("example.com/a:1")
    (entry,) = json.loads(oci(one)["manifest.json"])
    assert entry == {
        "Config": made.blob_name(one.config.digest),
        "RepoTags": ["example.com/a:1"],
        "Layers": [made.blob_name(LAYER.digest)],
    }
    assert "manifest.json" not in oci(one, archive=False)


def test_a_docker_archive() -> None:
    one = image("example.com/a:1", layer=Written(LAYER.diff_id, LAYER.diff_id, 99, "none"))
    files = dict(made.docker([one], archive=True))
    (entry,) = json.loads(files["manifest.json"])
    assert files[entry["Config"]] == CONFIG
    assert entry["Layers"] == ["1" * 64 + ".tar"]
