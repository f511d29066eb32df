"""The documents of one pull: the registry says which they are, the index has those that came before and are still what they say.

A pull asks the registry at least once, also for what is here: it alone knows what a tag means now, and whether these credentials may have
the image. Everything below that answer is named by digest, and what the index has under a digest need not be sent again.
"""

from __future__ import annotations

from collections.abc import Iterable

from bridge.errors import ImageAbsent
from bridge.images.catalogue import Catalogue
from bridge.images.manifest import Descriptor, is_what_it_says
from bridge.images.reference import Reference
from bridge.images.registry import Fetched, Repository
from bridge.images.rows import Blob
from bridge.images.transfer import Absent

_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"


class Shelf:
    """Fetches documents and remembers whether each of them lay in the index, intact (``complete``). ``open`` it first."""

    def __init__(self, catalogue: Catalogue, repository: Repository, reference: Reference) -> None:
        self._catalogue = catalogue
        self._repository = repository
        self._reference = reference
        self._kept: dict[str, Blob] = {}
        self.complete = True

    async def top(self) -> Fetched:
        """What the reference names now. Raises ImageAbsent when that is nothing, ImagePullFailed, RegistryUnavailable, CorruptData."""
        reference = self._reference
        known = self._catalogue.images.get(self._catalogue.names.get(str(reference), ""))
        if known is not None:
            await self._look(known.documents)
        last = {digest for repository, digest in known.digests if repository == reference.repository} if known is not None else set()
        wanted = reference.digest or (last.pop() if len(last) == 1 else "")  # of several nobody knows which came last
        kept = self._kept.get(wanted)
        try:
            found = await self._repository.newer_manifest(reference.digest or reference.tag, kept.digest if kept is not None else "")
        except Absent as exc:
            raise ImageAbsent(str(exc)) from exc
        if found is None:
            assert kept is not None
            return Fetched(kept.data, kept.media_type, kept.digest)
        self.complete &= found.digest in self._kept
        return found

    async def manifest(self, digest: str) -> Fetched:
        """The manifest or index with that digest. Raises as ``top`` does."""
        kept = await self._find(digest)
        return await self._repository.manifest(digest) if kept is None else Fetched(kept.data, kept.media_type, digest)

    async def config(self, wanted: Descriptor) -> Blob:
        """A config. Raises as ``top`` does."""
        kept = await self._find(wanted.digest)
        data = await self._repository.small_blob(wanted) if kept is None else kept.data
        return Blob(wanted.digest, wanted.media_type or _CONFIG_TYPE, data)

    async def _find(self, digest: str) -> Blob | None:
        if digest not in self._kept:
            await self._look([digest])
        found = self._kept.get(digest)
        self.complete &= found is not None
        return found

    async def _look(self, digests: Iterable[str]) -> None:
        found = await self._catalogue.blobs(digests)
        self._kept.update((digest, blob) for digest, blob in found.items() if is_what_it_says(digest, blob.data))
