"""What a signature says and where it comes from: the signed claim (containers-signature(5)), its checks, and sources. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bridge.errors import CorruptData
from bridge.images import strict_json
from bridge.images.manifest import is_digest
from bridge.images.reference import Reference
from bridge.images.signed_identity import IdentityRule

MOST = 128
"""Signatures of one manifest that are looked at; more is a fault of the server, or meant to keep us busy."""
SIMPLE = "atomic container signature"
SIGSTORE = "cosign container image signature"


class Refused(Exception):
    """One signature is not accepted; the message says why. Never leaves the judgement of an image."""


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest, or an index on the way to it, by the digests that name its bytes. The first one is what it was had by."""

    digests: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Its digest as it is written in references."""
        return self.digests[0]


def document(data: bytes, digest: str) -> Document:
    """The document ``data``, had by ``digest``, with its digests by the other algorithms."""
    own = [f"{name}:{hashlib.new(name, data).hexdigest()}" for name in ("sha256", "sha512")]
    return Document((digest, *(each for each in own if each != digest)))


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature as it was found at ``origin``, not checked. ``signature`` is base64 and "" where ``data`` carries its own."""

    origin: str
    data: bytes = field(repr=False)
    signature: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """The signatures of one document, and in words where they were looked for."""

    signatures: Sequence[Signature]
    looked: str


class Source(Protocol):
    """Where signatures come from: the network, or what was kept of a pull."""

    async def simple(self, digest: str) -> Found:
        """Simple signing signatures of the document ``digest``. Raises BridgeError when they can't be looked for."""
        ...

    async def sigstore(self, digest: str) -> Found:
        """The same for sigstore signatures."""
        ...


def check_claim(payload: bytes, kind: str, subject: Document, image: Reference, rule: IdentityRule) -> None:
    """Hold a claim whose signature is good to the document and the name. Raises Refused."""
    try:
        digest, claimed = parse_claim(payload, kind)
    except CorruptData as exc:
        raise Refused(f"its claim is malformed: {exc}") from exc
    if digest not in subject.digests:
        raise Refused(f"it is for the manifest {digest}")
    if not rule.accepts(image, claimed):
        raise Refused(f"it is for {claimed!r}, which {rule} does not accept for {image}")


def parse_claim(payload: bytes, kind: str) -> tuple[str, str]:
    """Manifest digest and docker reference of a claim of this kind. Raises CorruptData."""
    found = strict_json.load(payload)
    strict_json.only(found, "", required=("critical", "optional"))
    _check_optional(found["optional"], null=kind == SIGSTORE)
    critical = strict_json.fields(found["critical"], "critical")
    strict_json.only(critical, "critical", required=("type", "image", "identity"))
    if critical["type"] != kind:
        raise CorruptData(f"critical.type: {critical['type']!r} is not {kind!r}")
    image = strict_json.fields(critical["image"], "critical.image")
    strict_json.only(image, "critical.image", required=("docker-manifest-digest",))
    digest = image["docker-manifest-digest"]
    if not isinstance(digest, str) or not is_digest(digest):
        raise CorruptData(f"critical.image.docker-manifest-digest: {digest!r} is not a sha256 or sha512 digest")
    identity = strict_json.fields(critical["identity"], "critical.identity")
    strict_json.only(identity, "critical.identity", required=("docker-reference",))
    claimed = identity["docker-reference"]
    if not isinstance(claimed, str):
        raise CorruptData("critical.identity.docker-reference: must be a string")
    return digest, claimed


def _check_optional(value: object, *, null: bool) -> None:
    """``optional`` may hold anything, but what we know must be of its type; cosign writes null for nothing."""
    if value is None and null:
        return
    optional = strict_json.fields(value, "optional")
    if not isinstance(optional.get("creator", ""), str):
        raise CorruptData("optional.creator: must be a string")
    moment = optional.get("timestamp", 0)
    if isinstance(moment, bool) or not isinstance(moment, int | float) or moment != int(moment):
        raise CorruptData("optional.timestamp: must be a whole number")
