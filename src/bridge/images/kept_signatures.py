"""The signatures that came with images, kept for pods in namespaces with a policy of their own: one small file for each image.

A container is created without the network, maybe from an image that another namespace pulled; what was found then is
judged again. What is kept is as untrusted as it was on the network: each check verifies it anew.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import anyio
from anyio.to_thread import run_sync

from bridge import log
from bridge.errors import HostError
from bridge.images.signatures import Document, Found, Signature

_logger = log.get("images.signatures")


class KeptSource:
    """What was kept of one pull. ``documents`` are the manifest and, behind it, the indexes that led to it."""

    def __init__(self, entry: Any) -> None:
        self.documents = [Document(tuple(digests)) for digests in entry["documents"]]
        self._kept = entry["signatures"]

    async def simple(self, digest: str) -> Found:
        """See ``signatures.Source``."""
        return self._found("simple", digest)

    async def sigstore(self, digest: str) -> Found:
        """See ``signatures.Source``."""
        return self._found("sigstore", digest)

    def _found(self, kind: str, digest: str) -> Found:
        items = [item for item in self._kept if item["kind"] == kind and item["digest"] == digest]
        signatures = [Signature(item["origin"], base64.b64decode(item["data"]), item["signature"]) for item in items]
        return Found(signatures, f"the pull found no {kind} signature of {digest}")


class KeptSignatures:
    """The directory. ``images`` are the ids that the store has: files of others go when a new one is written."""

    def __init__(self, directory: Path, images: Container[str]) -> None:
        self._directory = directory
        self._images = images
        self._writing = anyio.Lock()

    async def save(self, image: str, documents: Sequence[Document], found: Sequence[tuple[str, str, Signature]]) -> None:
        """Keep what a pull found: (kind, digest, signature). What came with other manifests of the image stays. Raises HostError."""
        signatures = [
            {
                "kind": kind,
                "digest": digest,
                "origin": each.origin,
                "data": base64.b64encode(each.data).decode(),
                "signature": each.signature,
            }
            for kind, digest, each in found
        ]
        entry = {"documents": [document.digests for document in documents], "signatures": signatures}
        async with self._writing:
            await run_sync(self._save, image, documents[0].digest, entry)

    async def load(self, image: str) -> list[KeptSource]:
        """What was kept, one source a manifest; nothing when nothing was. A damaged file counts as none."""
        entries = await run_sync(self._load, image)
        try:
            return [KeptSource(entry) for entry in entries.values()]
        except (KeyError, TypeError, ValueError) as exc:
            _logger.warning("%s: %r; it counts as absent", self._path(image), exc)
            return []

    def _path(self, image: str) -> Path:
        return self._directory / f"{image.partition(':')[2]}.json"

    def _load(self, image: str) -> dict[str, Any]:
        try:
            found = json.loads(self._path(image).read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as exc:
            _logger.warning("%s: %s; it counts as absent", self._path(image), exc)
            return {}
        return found if isinstance(found, dict) else {}

    def _save(self, image: str, manifest: str, entry: dict[str, Any]) -> None:
        entries = self._load(image)
        entries[manifest] = entry
        path = self._path(image)
        part = path.with_suffix(".part")
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            self._prune(image)
            with part.open("w", encoding="utf-8") as file:
                json.dump(entries, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as exc:
            part.unlink(missing_ok=True)
            raise HostError(f"{path}: {exc.strerror}", errno=exc.errno) from exc

    def _prune(self, coming: str) -> None:
        for path in self._directory.iterdir():
            image = f"sha256:{path.stem}"
            if image != coming and image not in self._images:
                path.unlink(missing_ok=True)
