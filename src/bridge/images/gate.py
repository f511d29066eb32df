"""Where signature policies meet the store: at each pull, and at each container of a namespace with a policy of its own.

The node's policy is held against an image once, when it is pulled. A namespace's own policy is held against it again when a
container is created there, as the image may have come through another namespace; CRI-O decides likewise.
"""

from __future__ import annotations

from collections.abc import Sequence

from bridge import log
from bridge.errors import SignatureValidationFailed
from bridge.images import admission
from bridge.images.kept_signatures import KeptSignatures
from bridge.images.policy import Policy
from bridge.images.reference import Reference
from bridge.images.settings import ImageSettings
from bridge.images.signatures import Document, Source

_logger = log.get("images.signatures")


class Gate:
    """One store's. It reads the policies anew each time, so that a change holds at once."""

    def __init__(self, settings: ImageSettings, kept: KeptSignatures) -> None:
        self._settings = settings
        self._kept = kept

    async def enter(self, image: Reference, namespace: str) -> Policy:
        """The policy for a pull of ``image``. Raises SignatureValidationFailed where it is broken or refuses whatever is signed."""
        chosen = await admission.policy_for(namespace, self._settings)
        admission.refuse_outright(image, chosen)
        return chosen

    async def check(self, image: Reference, chosen: Policy, ident: str, documents: Sequence[Document], source: Source) -> None:
        """Accept what a pull found behind the name ``image``, and keep its signatures if another namespace may ask for them.

        ``ident`` is the image's id, ``documents`` as ``admission.judge`` wants them. Raises SignatureValidationFailed,
        RegistryUnavailable, HostError.
        """
        await admission.judge(image, chosen, documents, source)
        if await admission.namespaces_differ(self._settings):
            await self._kept.save(ident, documents, await admission.everything(documents, source))

    async def readmit(self, image: Reference | None, ident: str, namespace: str) -> None:
        """Accept an image that is in the store, by the name that a pod of ``namespace`` has for it, if that has a policy of its own.

        ``image`` is None for a pod that knows only the image's id. Raises SignatureValidationFailed.
        """
        chosen = await admission.namespace_policy(namespace, self._settings)
        if chosen is None:
            return
        if image is None:
            why = "an image is judged by its name, and the request has only its id (image.user_specified_image is empty)"
            raise SignatureValidationFailed(f"{ident}: policy {chosen.path}: {why}")
        if admission.asks_nothing(image, chosen):
            return
        admission.refuse_outright(image, chosen)
        failure = SignatureValidationFailed(
            f"{image} ({ident}): policy {chosen.path}: the image is here, but no signatures were kept of it, as it came when no "
            "namespace had a policy or from an archive: pull it again"
        )
        for source in await self._kept.load(ident):
            try:
                await admission.judge(image, chosen, source.documents, source)
            except SignatureValidationFailed as exc:
                failure = exc
            else:
                return
        raise failure
