"""Image manifests, indexes and configs: OCI image spec v1.1 and Docker schema 2, as frozen values. Pure.

Input is hostile: everything is checked for type and size, and every error says what is wrong (CorruptData).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bridge.errors import CorruptData, Unsupported
from bridge.ports.images import ImageConfig

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
ACCEPT = ", ".join((OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST))

TITLE = "org.opencontainers.image.title"
"""The annotation that names the file of an artifact's layer (image-spec annotations.md)."""

_CONFIGS = {OCI_CONFIG, DOCKER_CONFIG}
_EMPTY = "application/vnd.oci.empty.v1+json"
_INDEXES = {OCI_INDEX, DOCKER_LIST}
_MANIFESTS = {OCI_MANIFEST, DOCKER_MANIFEST}
_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_LAYER = re.compile(
    r"application/vnd\.(oci\.image\.layer\.(nondistributable\.)?v1\.tar|docker\.image\.rootfs\.(foreign\.)?diff\.tar)([+.](gzip|zstd))?"
)
_MEDIA_TYPE = re.compile(r"[!-~]{1,255}")
_MAX_INT = 1 << 62


@dataclass(frozen=True, slots=True)
class Platform:
    """An OCI platform; ``variant`` "" is any."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Points at content: media type, digest, size in bytes. ``urls`` are where foreign layers lie."""

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    urls: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Index:
    """An image index or Docker manifest list."""

    manifests: Sequence[Descriptor]


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image manifest: its config and its layers from base to top. ``artifact`` is its type when it is no image, and layers are files."""

    config: Descriptor
    layers: Sequence[Descriptor]
    artifact: str = ""


@dataclass(frozen=True, slots=True)
class Config:
    """An image config: what a container start uses, and the digests of the uncompressed layers."""

    run: ImageConfig
    diff_ids: Sequence[str]
    platform: Platform


def is_digest(text: str) -> bool:
    """Whether ``text`` is a digest that we can check: sha256 or sha512 in lower-case hex."""
    return _DIGEST.fullmatch(text) is not None


def is_what_it_says(digest: str, data: bytes) -> bool:
    """Whether ``data`` has that digest."""
    algorithm, _, value = digest.partition(":")
    return hashlib.new(algorithm, data).hexdigest() == value


def _object(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise CorruptData(f"{what} is not a JSON object")
    return value


def _list(value: object, what: str) -> Sequence[Any]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise CorruptData(f"{what} is not a JSON array")
    return value


def _strings(value: object, what: str) -> tuple[str, ...]:
    items = _list(value, what)
    if not all(isinstance(item, str) for item in items):
        raise CorruptData(f"{what} holds something that is not a string")
    return tuple(items)


def _string(value: object, what: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise CorruptData(f"{what} is not a string")
    return value


def _mapping(value: object, what: str) -> dict[str, str]:
    if value is None:
        return {}
    return {key: _string(item, f"{what}.{key}") for key, item in _object(value, what).items()}


def load(data: bytes, what: str) -> Mapping[str, Any]:
    """``data`` as a JSON object. Raises CorruptData."""
    try:
        return _object(json.loads(data), what)
    except (ValueError, RecursionError) as exc:
        raise CorruptData(f"{what} is not JSON: {exc}") from exc


def descriptor(value: object, what: str) -> Descriptor:
    """A descriptor. Raises CorruptData, naming the field."""
    fields = _object(value, what)
    digest, size = fields.get("digest"), fields.get("size")
    if not isinstance(digest, str) or not is_digest(digest):
        raise CorruptData(f"{what}.digest {digest!r} is not a sha256 or sha512 digest")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < _MAX_INT:
        raise CorruptData(f"{what}.size {size!r} is not a size")
    platform = fields.get("platform")
    return Descriptor(
        _string(fields.get("mediaType"), f"{what}.mediaType"),
        digest,
        size,
        None if platform is None else _platform(_object(platform, f"{what}.platform"), f"{what}.platform"),
        _mapping(fields.get("annotations"), f"{what}.annotations"),
        _strings(fields.get("urls"), f"{what}.urls"),
    )


def _platform(fields: Mapping[str, Any], what: str) -> Platform:
    return Platform(*(_string(fields.get(name), f"{what}.{name}") for name in ("os", "architecture", "variant")))


def parse(data: bytes, media_type: str = "", *, max_layers: int = 127) -> Index | Manifest:
    """A manifest or index. ``media_type`` is what the registry or descriptor said; the document's own word comes first.

    Raises CorruptData, and Unsupported for Docker schema 1 and for layers of a type that no image has.
    """
    document = load(data, "manifest")
    kind = _string(document.get("mediaType"), "manifest.mediaType") or media_type.partition(";")[0].strip()
    if kind.startswith(_SCHEMA_1) or document.get("schemaVersion") == 1:
        raise Unsupported("this is a Docker schema 1 manifest, a format withdrawn in 2019: push the image again with a current tool")
    if document.get("schemaVersion") != 2:
        raise CorruptData(f"manifest.schemaVersion is {document.get('schemaVersion')!r}, not 2")
    if "manifests" in document and "layers" in document:
        raise CorruptData("a document that is both index and manifest is ambiguous (CVE-2021-41190)")
    if kind in _INDEXES or (kind not in _MANIFESTS and "manifests" in document):
        items = _list(document.get("manifests"), "index.manifests")
        return Index(tuple(descriptor(item, f"index.manifests[{number}]") for number, item in enumerate(items)))
    if kind not in _MANIFESTS and "config" not in document:
        raise Unsupported(f"manifest type {kind!r} is no image")
    layers = _list(document.get("layers"), "manifest.layers")
    if len(layers) > max_layers:
        raise CorruptData(f"the manifest has {len(layers)} layers; at most {max_layers} are accepted")
    config = descriptor(document.get("config"), "manifest.config")
    found = tuple(descriptor(item, f"manifest.layers[{number}]") for number, item in enumerate(layers))
    return Manifest(config, found, _artifact_type(_string(document.get("artifactType"), "manifest.artifactType"), config, found))


def _artifact_type(kind: str, config: Descriptor, layers: Sequence[Descriptor]) -> str:
    """What an artifact says it is, "" for an image (image-spec manifest.md "Guidelines for Artifact Usage"). Raises Unsupported.

    An image has layers of file systems only. Older tools wrote other types for the configs of images, so those alone prove nothing; and
    oras calls a file a layer when it is told no type, but gives it a title.
    """
    strange = next((layer for layer in layers if not _LAYER.fullmatch(layer.media_type)), None)
    titled = any(TITLE in layer.annotations for layer in layers)
    own = config.media_type not in _CONFIGS
    if config.media_type == _EMPTY or (strange is not None and (own or kind)) or (own and config.media_type and titled):
        found = kind or config.media_type or "unknown"
        if not _MEDIA_TYPE.fullmatch(found):
            raise CorruptData(f"manifest.artifactType {found[:80]!r} is no media type")
        return found
    if strange is not None:
        raise Unsupported(f"layer {strange.digest} has the type {strange.media_type!r}: it is no file system layer that we know")
    return ""


def parse_config(data: bytes) -> Config:
    """An image config (image-spec config.md). Raises CorruptData."""
    document = load(data, "image config")
    rootfs = _object(document.get("rootfs"), "image config rootfs")
    diff_ids = _strings(rootfs.get("diff_ids"), "image config rootfs.diff_ids")
    if not all(is_digest(item) and item.startswith("sha256:") for item in diff_ids):
        raise CorruptData("image config rootfs.diff_ids holds something that is not a sha256 digest")
    run = _object(document.get("config") or {}, "image config config")
    platform = _platform(document, "image config")
    return Config(
        ImageConfig(
            user=_string(run.get("User"), "config.User"),
            env=_strings(run.get("Env"), "config.Env"),
            entrypoint=_strings(run.get("Entrypoint"), "config.Entrypoint"),
            cmd=_strings(run.get("Cmd"), "config.Cmd"),
            working_dir=_string(run.get("WorkingDir"), "config.WorkingDir"),
            stop_signal=_string(run.get("StopSignal"), "config.StopSignal"),
            volumes=tuple(sorted(_object(run.get("Volumes") or {}, "config.Volumes"))),
            labels=_mapping(run.get("Labels"), "config.Labels"),
            architecture=platform.architecture,
            os=platform.os,
            variant=platform.variant,
        ),
        diff_ids,
        platform,
    )
