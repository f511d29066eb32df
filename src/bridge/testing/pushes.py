"""Pushing to a registry over plain HTTP as oras and docker do (distribution-spec "Pushing"), for tests and benchmarks. Blocks."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from bridge.errors import HostError
from bridge.testing.images import MANIFEST_TYPE, digest

TITLE = "org.opencontainers.image.title"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
PLAIN_LAYER = "application/vnd.oci.image.layer.v1.tar"
"""The type that oras gives to a file of which it is told none, whatever it holds."""
_SECONDS = 120.0

Descriptor = dict[str, Any]


@dataclass(frozen=True, slots=True)
class File:
    """One file of an artifact. ``title`` None: the layer has no name. ``media_type`` is what ``oras push file:type`` says."""

    title: str | None
    data: bytes
    media_type: str = PLAIN_LAYER


class Pusher:
    """Pushes to one repository of the registry at ``host`` (``127.0.0.1:port``)."""

    def __init__(self, host: str, repository: str) -> None:
        self.name = f"{host}/{repository}"
        self._host = host
        self._path = f"/v2/{repository}"

    def blob(self, data: bytes, media_type: str) -> Descriptor:
        """Push ``data``; its descriptor. Raises HostError when the registry refuses."""
        found = digest(data)
        place = urlsplit(self._send("POST", f"{self._path}/blobs/uploads/", 202))
        self._send("PUT", f"{place.path}?{place.query}&digest={found}", 201, data, "application/octet-stream")
        return {"mediaType": media_type, "digest": found, "size": len(data)}

    def manifest(self, tag: str, document: Mapping[str, Any]) -> Descriptor:
        """Push a manifest or an index under ``tag``; its descriptor."""
        data = json.dumps(document).encode()
        self._send("PUT", f"{self._path}/manifests/{tag}", 201, data, document["mediaType"])
        return {"mediaType": document["mediaType"], "digest": digest(data), "size": len(data)}

    def image(self, tag: str, config: Mapping[str, Any], layers: Sequence[Descriptor], config_type: str) -> Descriptor:
        """Push an image whose ``layers`` are there already."""
        described = self.blob(json.dumps(config).encode(), config_type)
        return self.manifest(tag, {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": described, "layers": list(layers)})

    def artifact(
        self, tag: str, files: Sequence[File], *, kind: str = "application/x.test.v1", config: tuple[str, bytes] = (EMPTY_TYPE, b"{}")
    ) -> Descriptor:
        """Push an artifact as ``oras push --artifact-type KIND`` does; ``config`` is the type and the content of its config."""
        layers = []
        for file in files:
            described = self.blob(file.data, file.media_type)
            layers.append({**described, **({"annotations": {TITLE: file.title}} if file.title is not None else {})})
        document = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": self.blob(config[1], config[0]), "layers": layers}
        return self.manifest(tag, {**document, **({"artifactType": kind} if kind else {})})

    def _send(self, method: str, path: str, expected: int, data: bytes = b"", media_type: str = "") -> str:
        connection = http.client.HTTPConnection(self._host, timeout=_SECONDS)
        try:
            connection.request(method, path, data, {"Content-Type": media_type} if media_type else {})
            response = connection.getresponse()
            said = response.read()
        finally:
            connection.close()
        if response.status != expected:
            raise HostError(f"{self._host} answered {response.status} to {method} {path}: {said[:300]!r}")
        return response.headers.get("Location", "")
