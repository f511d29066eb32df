"""The documents of exported images: OCI's index.json, Docker's manifest.json, and manifests for blobs that were made anew. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.images.manifest import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Platform, load, parse_config
from bridge.images.reference import parse as parse_reference

_LAYER = "application/vnd.oci.image.layer.v1.tar"
CONTAINERD_NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest or config as it is."""

    digest: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Written:
    """A layer as it was written: digest and size of the blob; ``compression`` is gzip, zstd or none."""

    diff_id: str
    digest: str
    size: int
    compression: str


@dataclass(frozen=True, slots=True)
class Named:
    """An image to be exported, with the names it gets. Of an ``artifact`` every blob is what it was, and Docker knows none."""

    manifest: Document
    config: Document
    layers: Sequence[Written]
    names: Sequence[str]
    artifact: bool = False


def oci(images: Sequence[Named], *, archive: bool) -> Iterator[tuple[str, bytes]]:
    """The files of an OCI layout besides the layers, by name; in an archive with Docker's manifest.json too."""
    blobs: dict[str, bytes] = {"oci-layout": _LAYOUT}
    index: list[Mapping[str, Any]] = []
    for image in images:
        manifest = _manifest(image)
        blobs[blob_name(image.config.digest)] = image.config.data
        blobs[blob_name(manifest.digest)] = manifest.data
        index += _entries(image, manifest)
    there = {blob_name(layer.digest) for image in images for layer in image.layers}  # an artifact's config may be one of its files
    yield from ((name, data) for name, data in blobs.items() if name not in there)
    yield "index.json", _json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": index})
    if archive:
        images = [image for image in images if not image.artifact]
        yield (
            "manifest.json",
            _json([_docker_entry(i, blob_name(i.config.digest), [blob_name(layer.digest) for layer in i.layers]) for i in images]),
        )


def docker(images: Sequence[Named], *, archive: bool) -> Iterator[tuple[str, bytes]]:
    """The files of a docker archive besides the layers."""
    assert archive
    yield from {_config_name(image): image.config.data for image in images}.items()
    yield "manifest.json", _json([_docker_entry(i, _config_name(i), [docker_layer(layer) for layer in i.layers]) for i in images])


def blob_name(digest: str) -> str:
    """Where an OCI layout has a blob."""
    return "blobs/" + digest.replace(":", "/")


def docker_layer(layer: Written) -> str:
    """Where a docker archive has a layer."""
    return layer.diff_id.removeprefix("sha256:") + ".tar"


def digest_is(digest: str, data: bytes) -> bool:
    """Whether ``data`` has ``digest``."""
    algorithm, _, value = digest.partition(":")
    return hashlib.new(algorithm, data).hexdigest() == value


def _config_name(image: Named) -> str:
    return image.config.digest.removeprefix("sha256:") + ".json"


def _docker_entry(image: Named, config: str, layers: Sequence[str]) -> Mapping[str, Any]:
    return {"Config": config, "RepoTags": [name for name in image.names if "@" not in name] or None, "Layers": list(layers)}


def _manifest(image: Named) -> Document:
    """The image's own manifest if it has just these blobs, else one that has."""
    own = load(image.manifest.data, "manifest")
    if [layer.get("digest") for layer in own["layers"]] == [layer.digest for layer in image.layers]:
        return image.manifest
    made = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": image.config.digest, "size": len(image.config.data)},
        "layers": [{"mediaType": _layer_type(layer), "digest": layer.digest, "size": layer.size} for layer in image.layers],
        **({"annotations": own["annotations"]} if own.get("annotations") else {}),
    }
    data = _json(made)
    return Document("sha256:" + hashlib.sha256(data).hexdigest(), data)


def _layer_type(layer: Written) -> str:
    return _LAYER if layer.compression == "none" else f"{_LAYER}+{layer.compression}"


def _entries(image: Named, manifest: Document) -> list[Mapping[str, Any]]:
    """One descriptor a name. A name with a digest is only told with the manifest that has it."""
    described: dict[str, Any] = {
        "mediaType": load(manifest.data, "manifest").get("mediaType") or OCI_MANIFEST,
        "digest": manifest.digest,
        "size": len(manifest.data),
    }
    platform = Platform("", "") if image.artifact else parse_config(image.config.data).platform
    if platform.os and platform.architecture:
        variant = {"variant": platform.variant} if platform.variant else {}
        described["platform"] = {"architecture": platform.architecture, "os": platform.os, **variant}
    true = [name for name in image.names if parse_reference(name).digest in ("", manifest.digest)]
    return [{**described, "annotations": {CONTAINERD_NAME: name, REF_NAME: name}} for name in true] or [described]


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
