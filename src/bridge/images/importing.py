"""Import of image archives: which images an archive holds, under which names, and their way into the catalogue.

OCI layout: image-spec image-layout.md; names from the annotation ``io.containerd.image.name`` or ``org.opencontainers.image.ref.name``.
Docker archive (``docker save``): manifest.json with RepoTags; its layers have no compressed digest, so a manifest is made for them.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.errors import BridgeError, CorruptData, InvalidRequest
from bridge.images import disk
from bridge.images.archive import Bundle, open_archive
from bridge.images.assemble import Assembler, Plan, plan
from bridge.images.manifest import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Descriptor, Index, parse, parse_config
from bridge.images.platforms import choose
from bridge.images.reference import Reference
from bridge.images.reference import parse as parse_reference
from bridge.images.rows import Blob, Record
from bridge.images.settings import ImageSettings

_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
_NAMES = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
Stream = Callable[[Descriptor, bool], AsyncGenerator[bytes]]


@dataclass(frozen=True, slots=True)
class Found:
    """One image of an archive, ready to assemble."""

    plan: Plan
    source: Stream


class Importer:
    """Imports archives into a catalogue."""

    def __init__(self, settings: ImageSettings, assembler: Assembler) -> None:
        self._settings = settings
        self._assembler = assembler

    async def run(self, path: Path, scratch: Path, reference: str | None) -> list[Record]:
        """Import every image of the archive at ``path``, each once; ``scratch`` is a new file that the caller removes.

        ``reference`` names the image of an archive that has just one. Raises InvalidRequest, CorruptData, Unsupported, HostError.
        """
        name = parse_reference(reference) if reference is not None else None
        found = await disk.blocking(self._read, path, scratch, name)
        records = {}
        for one in found:
            with self._assembler.board.pull(str(path)) as shown:
                record = await self._assembler.assemble(one.plan, one.source, shown)
            records[record.id] = record
        return list(records.values())

    def _read(self, path: Path, scratch: Path, name: Reference | None) -> list[Found]:
        bundle = open_archive(path, scratch, self._settings.limits)
        if "index.json" in bundle:
            return self._oci(bundle, name)
        if "manifest.json" in bundle:
            return self._docker(bundle, name)
        raise InvalidRequest(f"{path} is neither an OCI layout (index.json) nor a docker archive (manifest.json)", field="path")

    def _document(self, bundle: Bundle, name: str) -> bytes:
        return bundle.read(name, self._settings.limits.manifest_bytes)

    def _blob(self, bundle: Bundle, wanted: Descriptor) -> Blob:
        data = self._document(bundle, _blob_name(wanted.digest))
        algorithm = wanted.digest.partition(":")[0]
        if f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}" != wanted.digest:
            raise CorruptData(f"{bundle.origin}: blob {wanted.digest} is damaged")
        return Blob(wanted.digest, wanted.media_type, data)

    def _oci(self, bundle: Bundle, name: Reference | None) -> list[Found]:
        index = parse(self._document(bundle, "index.json"), OCI_INDEX)
        if not isinstance(index, Index) or not index.manifests:
            raise CorruptData(f"{bundle.origin}: index.json lists no image")
        _one_for(name, {entry.digest for entry in index.manifests}, bundle)
        return [self._oci_image(bundle, entry, name) for entry in index.manifests]

    def _oci_image(self, bundle: Bundle, entry: Descriptor, name: Reference | None) -> Found:
        documents = [self._blob(bundle, entry)]
        limits = self._settings.limits
        while isinstance(parsed := parse(documents[-1].data, documents[-1].media_type, max_layers=limits.layers), Index):
            if len(documents) > limits.index_depth:
                raise CorruptData(f"{bundle.origin}: indexes nest deeper than {limits.index_depth}")
            documents.append(self._blob(bundle, choose(parsed, self._settings.platform)))
        config = self._blob(bundle, parsed.config)
        names = [name] if name is not None else _annotated(entry, bundle)
        digests = [(reference.repository, documents[0].digest) for reference in names]

        def source(layer: Descriptor, again: bool) -> AsyncGenerator[bytes]:
            del again  # there is one copy only
            return bundle.stream(_blob_name(layer.digest))

        return Found(plan(parsed, documents, config, [str(reference.canonical()) for reference in names], digests), source)

    def _docker(self, bundle: Bundle, name: Reference | None) -> list[Found]:
        try:
            entries = json.loads(self._document(bundle, "manifest.json"))
        except (ValueError, RecursionError) as exc:
            raise CorruptData(f"{bundle.origin}: manifest.json is not JSON: {exc}") from exc
        if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
            raise CorruptData(f"{bundle.origin}: manifest.json lists no image")
        _one_for(name, entries, bundle)
        return [self._docker_image(bundle, entry, name) for entry in entries]

    def _docker_image(self, bundle: Bundle, entry: Mapping[str, Any], name: Reference | None) -> Found:
        config_name, layers, tags = entry.get("Config"), entry.get("Layers") or [], entry.get("RepoTags") or []
        if not isinstance(config_name, str) or not all(isinstance(item, str) for item in (*layers, *tags)):
            raise CorruptData(f"{bundle.origin}: manifest.json has an entry of another shape than docker save makes")
        data = self._document(bundle, config_name)
        config = parse_config(data)
        image_id = "sha256:" + hashlib.sha256(data).hexdigest()
        if len(layers) != len(config.diff_ids):
            raise CorruptData(f"{bundle.origin}: {len(layers)} layers, but the config names {len(config.diff_ids)}")
        files = dict(zip(config.diff_ids, layers, strict=True))
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": image_id, "size": len(data)},
            "layers": [
                {"mediaType": _LAYER_TYPE, "digest": diff_id, "size": bundle.slice(layer).size}
                for diff_id, layer in zip(config.diff_ids, layers, strict=True)
            ],
        }
        made = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
        digest = "sha256:" + hashlib.sha256(made).hexdigest()
        manifest = parse(made, OCI_MANIFEST, max_layers=self._settings.limits.layers)
        assert not isinstance(manifest, Index)
        names = [name] if name is not None else [parse_reference(tag) for tag in tags]
        called = [str(reference.canonical()) for reference in names]
        wanted = plan(manifest, [Blob(digest, OCI_MANIFEST, made)], Blob(image_id, OCI_CONFIG, data), called, [], checked=False)
        return Found(wanted, functools.partial(_docker_layer, bundle, files))


def _docker_layer(bundle: Bundle, files: Mapping[str, str], layer: Descriptor, again: bool) -> AsyncGenerator[bytes]:
    del again  # there is one copy only
    return bundle.stream(files[layer.digest])


def _blob_name(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _one_for(name: Reference | None, entries: Sized, bundle: Bundle) -> None:
    if name is not None and len(entries) != 1:
        raise InvalidRequest(f"{bundle.origin} holds {len(entries)} images, so one name can't be given", field="reference")


def _annotated(entry: Descriptor, bundle: Bundle) -> list[Reference]:
    text = next((entry.annotations[key] for key in _NAMES if entry.annotations.get(key)), None)
    if text is None:
        return []
    try:
        name = parse_reference(text)
    except BridgeError as exc:
        raise InvalidRequest(f"{bundle.origin} names an image {text!r}: {exc}; give a reference", field="reference") from exc
    if name.digest not in ("", entry.digest):
        raise CorruptData(f"{bundle.origin} names an image {text!r}, but that image's digest is {entry.digest}")
    return [name]
