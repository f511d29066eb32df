"""Signatures from the network: the lookaside store for simple signing, attachments in the repository for sigstore.

Lookaside: ``BASE/PATH@ALGORITHM=HEX/signature-N``, N from 1 to the first that is absent. Sigstore: the manifest with the tag
``ALGORITHM-HEX.sig``, each layer of which is a claim, its signature an annotation (cosign's signature specification).
Nothing found is an answer; a store that can't be asked is RegistryUnavailable, or ImagePullFailed with its words.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from anyio.to_thread import run_sync

from bridge.errors import CorruptData, HostError
from bridge.images import hosts_toml, manifest, places, registries_d
from bridge.images.endpoints import Endpoint
from bridge.images.http import Exchange
from bridge.images.places import Place
from bridge.images.reference import Reference
from bridge.images.registries_d import RegistriesD
from bridge.images.registry import Repository
from bridge.images.signatures import MOST, Found, Signature
from bridge.images.transfer import Absent

_BLOB_BYTES = 1 << 20
_CLAIM_TYPE = "application/vnd.dev.cosign.simplesigning.v1+json"
_SIGNATURE = "dev.cosignproject.cosign/signature"


class NetworkSource:
    """The signatures of what one pull gets. Each document is looked up once."""

    def __init__(self, exchange: Exchange, repository: Repository, image: Reference) -> None:
        self._exchange = exchange
        self._repository = repository
        self._image = image
        self._configured: RegistriesD | None = None
        self._simple: dict[str, Found] = {}
        self._sigstore: dict[str, Found] = {}

    async def simple(self, digest: str) -> Found:
        """See ``signatures.Source``."""
        if digest not in self._simple:
            base = (await self._configuration()).lookaside(self._image)
            self._simple[digest] = await self._lookaside(base, f"{self._image.path}@{digest.replace(':', '=')}")
        return self._simple[digest]

    async def sigstore(self, digest: str) -> Found:
        """See ``signatures.Source``."""
        if not (await self._configuration()).attachments(self._image):
            return Found((), "sigstore signatures are not looked for: use-sigstore-attachments is not set for it in registries.d")
        if digest not in self._sigstore:
            self._sigstore[digest] = await self._attached(f"{digest.replace(':', '-')}.sig")
        return self._sigstore[digest]

    async def _configuration(self) -> RegistriesD:
        if self._configured is None:
            self._configured = await run_sync(registries_d.load, self._exchange.settings.registries_d)
        return self._configured

    async def _lookaside(self, base: str, name: str) -> Found:
        looked = f"{base.rstrip('/')}/{name}"
        found: list[Signature] = []
        for number in range(1, MOST + 1):
            data = await (_file(base, name, number) if base.startswith("file:") else self._get(base, name, number))
            if data is None:
                return Found(found, f"there is none at {looked}/signature-1")
            found.append(Signature(f"{looked}/signature-{number}", data))
        raise CorruptData(f"{looked} has more than {MOST} signatures")

    async def _get(self, base: str, name: str, number: int) -> bytes | None:
        host = urlsplit(base).netloc
        place = Place(base.rstrip("/"), name)
        for root in self._exchange.settings.certificate_dirs:
            place = places.with_certificates(place, await run_sync(hosts_toml.certificates, root / host))
        endpoint = Endpoint(place, urlsplit(base).scheme)
        try:
            async with self._exchange.get(endpoint, f"signature-{number}", {}) as response:
                return await self._exchange.body(endpoint, response, _BLOB_BYTES)
        except Absent:
            return None

    async def _attached(self, tag: str) -> Found:
        looked = f"there is no sigstore signature {self._image.repository}:{tag}"
        try:
            fetched = await self._repository.manifest(tag)
        except Absent:
            return Found((), looked)
        layers = manifest.load(fetched.data, tag).get("layers")
        if not isinstance(layers, list) or len(layers) > MOST:
            raise CorruptData(f"{tag}: layers: must be an array with at most {MOST} signatures")
        found = []
        for number, layer in enumerate(layers):
            wanted = manifest.descriptor(layer, f"{tag}: layers[{number}]")
            if wanted.media_type != _CLAIM_TYPE or _SIGNATURE not in wanted.annotations:
                continue
            if wanted.size > _BLOB_BYTES:
                raise CorruptData(f"{tag}: layers[{number}] has {wanted.size} bytes; a signed claim has at most {_BLOB_BYTES}")
            claim = await self._repository.small_blob(wanted)
            found.append(Signature(f"{tag} layer {number}", claim, wanted.annotations[_SIGNATURE]))
        return Found(found, looked)


async def _file(base: str, name: str, number: int) -> bytes | None:
    path = Path(unquote(urlsplit(base).path)) / name / f"signature-{number}"

    def read() -> bytes | None:
        try:
            with path.open("rb") as file:
                data = file.read(_BLOB_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            raise HostError(f"{path}: {exc.strerror}", errno=exc.errno) from exc
        if len(data) > _BLOB_BYTES:
            raise CorruptData(f"{path} has more than {_BLOB_BYTES} bytes")
        return data

    return await run_sync(read)
