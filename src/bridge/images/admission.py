"""Whether an image may be used: the policy for its namespace, held against its name, its documents and their signatures.

A signature of the manifest counts, and so does one of an index that led to it, as the index names the manifest by its digest.
Every failure to judge is a refusal, and says which policy, scope and requirement it was and what became of each signature.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from anyio.to_thread import run_sync

from bridge import log
from bridge.errors import BridgeError, ConfigError, CorruptData, HostError, ImagePullFailed, InvalidRequest, SignatureValidationFailed
from bridge.images import gpg, policy, signatures
from bridge.images.policy import AcceptAnything, Keys, Policy, Reject, Requirement, SignedBy, SigstoreSigned
from bridge.images.reference import Reference
from bridge.images.settings import ImageSettings
from bridge.images.signatures import Document, Found, Refused, Signature, Source

if TYPE_CHECKING:
    from bridge.images.sigstore_keys import PublicKey

_logger = log.get("images.signatures")
_POLICY_BYTES = 4 << 20
_KEY_BYTES = 16 << 20
Check = Callable[[Signature, Document], Awaitable[None]]
"""Holds one signature of a document to one requirement. Raises Refused."""


async def policy_for(namespace: str, settings: ImageSettings) -> Policy:
    """The policy for pulls in ``namespace`` ("" for none): its own where it has one, else the node's.

    Raises SignatureValidationFailed naming file and key when it can't be read, InvalidRequest for what is no namespace.
    """
    own = await namespace_policy(namespace, settings)
    if own is not None:
        return own
    if settings.signature_policy is None:
        return policy.ACCEPT_ALL
    return await run_sync(_load, settings.signature_policy, settings.signature_policy_required) or policy.ACCEPT_ALL


async def namespace_policy(namespace: str, settings: ImageSettings) -> Policy | None:
    """The policy of that namespace alone, None when it has none. Raises as ``policy_for`` does."""
    if not namespace or settings.signature_policy_dir is None:
        return None
    if "/" in namespace or "\0" in namespace or namespace in (".", ".."):
        raise InvalidRequest(f"{namespace!r} is not the name of a namespace", field="sandbox_config.metadata.namespace")
    return await run_sync(_load, settings.signature_policy_dir / f"{namespace}.json", False)


async def namespaces_differ(settings: ImageSettings) -> bool:
    """Whether any namespace has a policy of its own, so that signatures must be kept for it."""
    directory = settings.signature_policy_dir
    return directory is not None and await run_sync(lambda: next(directory.glob("*.json"), None) is not None)


def _load(path: Path, required: bool) -> Policy | None:
    try:
        data = _read(path, _POLICY_BYTES)
        return replace(policy.parse(data, str(path)), fingerprint=hashlib.sha256(data).hexdigest())
    except FileNotFoundError as exc:
        if not required:
            return None
        raise SignatureValidationFailed(f"the signature policy {path} is not there (images.signature_policy)") from exc
    except OSError as exc:
        raise SignatureValidationFailed(f"the signature policy {path} can't be read: {exc.strerror}") from exc
    except CorruptData as exc:
        raise SignatureValidationFailed(f"the signature policy {path} is broken: {exc}") from exc


def _read(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise CorruptData(f"{path} has more than {limit} bytes")
    return data


def refuse_outright(image: Reference, chosen: Policy) -> None:
    """Refuse what no signature would help, before anything is asked of the network. Raises SignatureValidationFailed."""
    scope, requirements = chosen.requirements(image)
    for number, requirement in enumerate(requirements):
        if isinstance(requirement, Reject):
            why = requirement.why or f"{scope}[{number}]: reject"
            raise SignatureValidationFailed(f"{image}: policy {chosen.path}: {why}")


def asks_nothing(image: Reference, chosen: Policy) -> bool:
    """Whether the policy accepts ``image`` without looking at it."""
    return all(isinstance(requirement, AcceptAnything) for requirement in chosen.requirements(image)[1])


async def judge(image: Reference, chosen: Policy, documents: Sequence[Document], source: Source) -> None:
    """Accept ``image``, or raise SignatureValidationFailed; RegistryUnavailable when its signatures can't be looked for just now.

    ``documents`` are the manifest and, behind it, the indexes that led to it.
    """
    refuse_outright(image, chosen)
    scope, requirements = chosen.requirements(image)
    for number, requirement in enumerate(requirements):
        try:
            reasons = await _met(image, requirement, documents, source)
        except (ConfigError, CorruptData, HostError, ImagePullFailed) as exc:
            reasons = [str(exc)]
        if reasons:
            asked = f"{image} ({documents[0].digest}): policy {chosen.path}: {scope}[{number}]: {requirement}"
            raise SignatureValidationFailed(f"{asked}: {'; '.join(reasons)}")


async def _met(image: Reference, requirement: Requirement, documents: Sequence[Document], source: Source) -> list[str]:
    """Why the requirement is not met; nothing when it is."""
    if isinstance(requirement, SignedBy):
        rings = await run_sync(_keyrings, requirement.keys)
        rule = requirement.identity

        async def simple(signature: Signature, subject: Document) -> None:
            signatures.check_claim(await gpg.verify(signature.data, rings), signatures.SIMPLE, subject, image, rule)

        return await _any(documents, source.simple, simple)
    if isinstance(requirement, SigstoreSigned):
        sigstore = await run_sync(import_module, "bridge.images.sigstore_keys")
        keys: list[PublicKey] = await run_sync(lambda: [sigstore.load(data, where) for where, data in _key_data(requirement.keys)])
        accepted = requirement.identity

        async def cosigned(signature: Signature, subject: Document) -> None:
            sigstore.verify(signature.data, signature.signature, keys)
            signatures.check_claim(signature.data, signatures.SIGSTORE, subject, image, accepted)

        return await _any(documents, source.sigstore, cosigned)
    return []


async def _any(documents: Sequence[Document], look: Callable[[str], Awaitable[Found]], check: Check) -> list[str]:
    reasons: list[str] = []
    for subject in documents:
        found = await look(subject.digest)
        for signature in found.signatures:
            try:
                await check(signature, subject)
            except Refused as exc:
                reasons.append(f"{signature.origin}: {exc}")
            else:
                return []
        if not found.signatures and found.looked not in reasons:
            reasons.append(found.looked)
    return reasons


def _keyrings(keys: Keys) -> list[bytes]:
    return [gpg.keyring(data, where) for where, data in _key_data(keys)]


def _key_data(keys: Keys) -> list[tuple[str, bytes]]:
    """What each of the keys' files holds, with its name. Raises CorruptData, HostError."""
    found = [(keys.field, data) for data in keys.data]
    for path in keys.paths:
        try:
            found.append((path, _read(Path(path), _KEY_BYTES)))
        except OSError as exc:
            raise HostError(f"{path} can't be read: {exc.strerror}", errno=exc.errno) from exc
    return found


async def everything(documents: Sequence[Document], source: Source) -> list[tuple[str, str, Signature]]:
    """All signatures of the documents, to be kept: (kind, digest, signature). What can't be looked for is left out."""
    found: list[tuple[str, str, Signature]] = []
    for subject in documents:
        for kind, look in (("simple", source.simple), ("sigstore", source.sigstore)):
            try:
                found += [(kind, subject.digest, each) for each in (await look(subject.digest)).signatures]
            except BridgeError as exc:  # nobody asked for it now; who does later is told that there is none
                _logger.info("%s: its %s signatures are not kept: %s", subject.digest, kind, exc)
    return found
