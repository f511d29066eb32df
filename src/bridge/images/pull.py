"""PullImage: one flight per reference and credentials; manifest → platform → config → layers → catalogue.

Registry errors pass through; damaged or refused content becomes ImagePullFailed, with the reference in front.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import anyio

from bridge.aio import SingleFlight, Supervisor
from bridge.errors import CorruptData, ImagePullFailed, LimitExceeded, Unsupported
from bridge.images import auth as authentication
from bridge.images.assemble import Assembler, plan
from bridge.images.auth import Credentials
from bridge.images.catalogue import Catalogue
from bridge.images.gate import Gate
from bridge.images.manifest import Descriptor, Index, Manifest, parse
from bridge.images.platforms import choose
from bridge.images.policy import Policy
from bridge.images.progress import Pull
from bridge.images.reference import Reference
from bridge.images.reference import parse as parse_reference
from bridge.images.registry import Fetched, RegistryClient, Repository
from bridge.images.rows import Blob, Record
from bridge.images.settings import ImageSettings
from bridge.images.shelf import Shelf
from bridge.images.signature_sources import NetworkSource
from bridge.images.signatures import Document, document
from bridge.ports.images import RegistryAuth


class Puller:
    """Pulls images into a catalogue."""

    def __init__(
        self,
        settings: ImageSettings,
        client: RegistryClient,
        catalogue: Catalogue,
        assembler: Assembler,
        supervisor: Supervisor,
        gate: Gate,
    ) -> None:
        self._settings = settings
        self._client = client
        self._catalogue = catalogue
        self._assembler = assembler
        self._gate = gate
        self._flights: SingleFlight[Flight, Record] = SingleFlight(supervisor, "pull", linger=settings.linger)

    async def pull(self, reference: Reference, auth: RegistryAuth | None, namespace: str = "") -> Record:
        """Pull ``reference`` for a pod of ``namespace``, whose signature policy is asked.

        Raises ImagePullFailed, SignatureValidationFailed, RegistryUnavailable, InvalidRequest (bad credentials), HostError.
        """
        who, name = authentication.credentials(auth), reference.canonical()
        policy = await self._gate.enter(name, namespace)
        flight = Flight(name, _fingerprint(auth) + policy.fingerprint)
        return await self._flights.join(flight, lambda: self._pull(name, who, policy))

    async def refetch(self, record: Record, repository: str, digest: str) -> None:
        """Fetch again what is damaged of ``record``, whose manifest or index has ``digest`` in ``repository``; it gets no new name.

        Raises ImagePullFailed, RegistryUnavailable, HostError.
        """
        reference = parse_reference(f"{repository}@{digest}")
        await self._pull(reference, authentication.credentials(None), None, record)

    async def stop(self, seconds: float) -> None:
        """Cancel every pull; returns when they have undone their work or after ``seconds``."""
        self._flights.cancel_all()
        with anyio.move_on_after(seconds):
            await self._flights.wait_idle()

    async def _pull(self, reference: Reference, who: Credentials, policy: Policy | None, damaged: Record | None = None) -> Record:
        try:
            with self._assembler.board.pull(str(reference)) as shown:
                return await self._fetch(reference, await self._client.repository(reference, who), shown, policy, damaged)
        except (CorruptData, LimitExceeded, Unsupported) as exc:
            raise ImagePullFailed(f"{reference}: {exc}") from exc

    async def _fetch(
        self, reference: Reference, repository: Repository, shown: Pull, policy: Policy | None, damaged: Record | None
    ) -> Record:
        shelf = Shelf(self._catalogue, repository, reference)
        step = self._assembler.board.step
        with step("resolve"):
            documents, manifest = await self._resolve(shelf)
        if policy is not None:
            source = NetworkSource(self._client.exchange, repository, reference)
            ident = documents[-1].digest if manifest.artifact else manifest.config.digest
            with step("signatures"):
                await self._gate.check(reference, policy, ident, _subjects(documents), source)
        blobs = [Blob(document.digest, document.media_type, document.data) for document in documents]
        names, digests = [] if damaged else [str(reference)], [(reference.repository, documents[0].digest)]
        with step("config"):
            config = await shelf.config(manifest.config)
        wanted = plan(manifest, blobs, config, names, digests, kept=shelf.complete)
        if damaged is not None and wanted.new.id != damaged.id:
            raise CorruptData(f"it leads to image {wanted.new.id} now, not to {damaged.id}")
        return await self._assembler.assemble(wanted, lambda layer, again: _layer(repository, layer, again), shown)

    async def _resolve(self, shelf: Shelf) -> tuple[list[Fetched], Manifest]:
        """The documents from what the reference names down to the manifest for our platform."""
        limits = self._settings.limits
        documents = [await shelf.top()]
        for _ in range(limits.index_depth):
            fetched = documents[-1]
            parsed = parse(fetched.data, fetched.media_type, max_layers=limits.layers)
            if isinstance(parsed, Manifest):
                return documents, parsed
            documents.append(await shelf.manifest(_chosen(parsed, self._settings)))
        raise CorruptData(f"indexes nest deeper than {limits.index_depth}")


async def _layer(repository: Repository, layer: Descriptor, again: bool) -> AsyncGenerator[bytes]:
    """A layer's blob, from its registry only: the URLs of a foreign layer would let an image send this node anywhere."""
    try:
        async with aclosing(repository.blob(layer, last_first=again)) as chunks:
            async for chunk in chunks:
                yield chunk
    except ImagePullFailed as exc:
        if not layer.urls:
            raise
        places = ", ".join(layer.urls)[:200]
        what = f"layer {layer.digest} lies elsewhere ({places}), and only registries are asked; push the image with its foreign layers"
        raise ImagePullFailed(f"{what}: {exc}") from exc


def _subjects(documents: Sequence[Fetched]) -> list[Document]:
    """What may be signed: the manifest, and behind it the indexes that led to it."""
    return [document(each.data, each.digest) for each in reversed(documents)]


def _chosen(index: Index, settings: ImageSettings) -> str:
    return choose(index, settings.platform).digest


class Flight(tuple[str, str]):
    """Key of a pull: reference and a hash of the credentials. Only the reference shows in logs."""

    __slots__ = ()

    def __new__(cls, reference: Reference, fingerprint: str) -> Flight:
        return super().__new__(cls, (str(reference), fingerprint))

    def __str__(self) -> str:
        return self[0]


def _fingerprint(auth: RegistryAuth | None) -> str:
    if auth is None:
        return ""
    fields = (auth.username, auth.password, auth.auth, auth.server_address, auth.identity_token, auth.registry_token)
    return hashlib.sha256(json.dumps(fields).encode()).hexdigest() if any(fields) else ""
