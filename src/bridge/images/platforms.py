"""Which manifest of an index suits this machine. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.errors import Unsupported
from bridge.images.manifest import Descriptor, Index, Platform

_ATTESTATION = "vnd.docker.reference.type"
# Older ARM code runs on newer cores; amd64 levels above v1 are not assumed.
_ARM_VARIANTS = ("v8", "v7", "v6", "v5")
_DEFAULT_VARIANT = {"arm64": "v8", "arm": "v7", "amd64": "v1"}


def _variant(platform: Platform) -> str:
    return platform.variant or _DEFAULT_VARIANT.get(platform.architecture, "")


def _rank(found: Platform | None, wanted: Platform) -> int | None:
    """How well ``found`` runs on ``wanted``: lower is better, None is not at all."""
    if found is None or not found.architecture:
        return 100  # says nothing, so it may do
    if found.os not in ("", wanted.os):
        return None
    if found.architecture != wanted.architecture:
        return None
    ours, theirs = _variant(wanted), _variant(found)
    if ours == theirs:
        return 0
    if wanted.architecture == "arm" and ours in _ARM_VARIANTS and theirs in _ARM_VARIANTS:
        distance = _ARM_VARIANTS.index(theirs) - _ARM_VARIANTS.index(ours)
        return distance if distance > 0 else None
    return 50 if not found.variant else None


def choose(index: Index, wanted: Platform) -> Descriptor:
    """The first best manifest of ``index`` for ``wanted``. Raises Unsupported, naming the platforms that there are."""
    offers: Sequence[Descriptor] = [m for m in index.manifests if _ATTESTATION not in m.annotations]
    ranked = [(rank, number) for number, offer in enumerate(offers) if (rank := _rank(offer.platform, wanted)) is not None]
    if not ranked:
        names = ", ".join(sorted({str(offer.platform) for offer in offers if offer.platform})) or "none"
        raise Unsupported(f"the image has no manifest for {wanted}; it has: {names}")
    return offers[min(ranked)[1]]
