"""Signature policies, containers-policy.json(5): what an image must show before it is used. What Podman, CRI-O and skopeo read. Pure.

Parsing is strict: anything unknown refuses the file. What is known but can't be judged here (Fulcio, Rekor, X.509) is
kept as a requirement that refuses, so that it fails only the images that it is for.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bridge.errors import CorruptData
from bridge.images import signed_identity, strict_json
from bridge.images.reference import Reference
from bridge.images.signed_identity import IdentityRule
from bridge.images.strict_json import Fields

_TRANSPORT = "docker"
_GPG = "GPGKeys"
_OTHER_KEY_TYPES = ("signedByGPGKeys", "X509Certificates", "signedByX509CAs")
_SIMPLE_KEYS = ("keyPath", "keyPaths", "keyData")
_SIGSTORE_KEYS = (*_SIMPLE_KEYS, "keyDatas")
_BEYOND = ("fulcio", "pki", "rekorPublicKeyPath", "rekorPublicKeyPaths", "rekorPublicKeyData", "rekorPublicKeyDatas")


@dataclass(frozen=True, slots=True)
class Keys:
    """Where public keys are: files, or ``data`` itself, which came from ``field`` of the policy."""

    field: str
    paths: tuple[str, ...] = ()
    data: tuple[bytes, ...] = ()

    def __str__(self) -> str:
        return f"a key in {', '.join(self.paths)}" if self.paths else f"the policy's {self.field}"


@dataclass(frozen=True, slots=True)
class AcceptAnything:
    """insecureAcceptAnything: asks nothing."""


@dataclass(frozen=True, slots=True)
class Reject:
    """Refuses every image; ``why`` is "" for the policy's own reject, else what of it we can't judge."""

    why: str = ""


@dataclass(frozen=True, slots=True)
class SignedBy:
    """A simple signing signature by one of the GPG keys, for an identity that the rule accepts."""

    keys: Keys
    identity: IdentityRule

    def __str__(self) -> str:
        return f"signedBy {self.keys} for {self.identity}"


@dataclass(frozen=True, slots=True)
class SigstoreSigned:
    """A sigstore (cosign) signature by one of the public keys, for an identity that the rule accepts."""

    keys: Keys
    identity: IdentityRule

    def __str__(self) -> str:
        return f"sigstoreSigned {self.keys} for {self.identity}"


Requirement = AcceptAnything | Reject | SignedBy | SigstoreSigned


@dataclass(frozen=True, slots=True)
class Policy:
    """A whole file. ``scopes`` are those of the transport docker; "" is that transport's own default.

    ``path`` is where it was read, ``fingerprint`` tells its content from any other.
    """

    default: Sequence[Requirement]
    scopes: Mapping[str, Sequence[Requirement]] = field(default_factory=dict)
    path: str = ""
    fingerprint: str = ""

    def requirements(self, image: Reference) -> tuple[str, Sequence[Requirement]]:
        """The scope that fits ``image`` best, in words, and what it requires: all of it at once."""
        for scope in (*scopes(image), ""):
            if scope in self.scopes:
                return (f"transports.docker[{scope!r}]", self.scopes[scope])
        return "default", self.default


ACCEPT_ALL = Policy((AcceptAnything(),))


def scopes(image: Reference) -> Iterator[str]:
    """The scopes that ``image`` is in, narrowest first: itself, its repository, namespaces, host, and the host's domains with ``*.``."""
    yield str(image)
    name = image.repository
    while name:
        yield name
        name = name.rpartition("/")[0]
    host = image.domain.partition(":")[0]
    while "." in host:
        host = host.partition(".")[2]
        yield f"*.{host}"


def parse(text: bytes | str, path: str = "") -> Policy:
    """A policy file. Raises CorruptData, naming the key."""
    found = strict_json.load(text)
    strict_json.only(found, "", required=("default",), optional=("transports",))
    transports = strict_json.fields(found.get("transports", {}), "transports")
    scoped: Mapping[str, Sequence[Requirement]] = {}
    for transport, value in transports.items():
        where = strict_json.below("transports", transport)
        of_transport = {scope: _requirements(each, f"{where}[{scope!r}]") for scope, each in strict_json.fields(value, where).items()}
        if transport == _TRANSPORT:
            scoped = of_transport
    return Policy(_requirements(found["default"], "default"), scoped, path)


def _requirements(value: object, where: str) -> tuple[Requirement, ...]:
    if not isinstance(value, list) or not value:
        raise CorruptData(f"{where}: must be an array of requirements, with at least one (insecureAcceptAnything asks nothing)")
    return tuple(_requirement(strict_json.fields(each, f"{where}[{number}]"), f"{where}[{number}]") for number, each in enumerate(value))


def _requirement(found: Fields, where: str) -> Requirement:
    kind = strict_json.text(found, "type", where)
    match kind:
        case "insecureAcceptAnything":
            strict_json.only(found, where, required=("type",))
            return AcceptAnything()
        case "reject":
            strict_json.only(found, where, required=("type",))
            return Reject()
        case "signedBy":
            return _signed_by(found, where)
        case "sigstoreSigned":
            return _sigstore_signed(found, where)
        case "signedBaseLayer":
            return Reject(f"{where}: signedBaseLayer is not supported; nor do other programs that read such policies support it")
        case _:
            known = "insecureAcceptAnything, reject, signedBy, sigstoreSigned"
            raise CorruptData(f"{where}.type: {kind!r} is no requirement (known: {known})")


def _signed_by(found: Fields, where: str) -> Requirement:
    strict_json.only(found, where, required=("type", "keyType"), optional=(*_SIMPLE_KEYS, "signedIdentity"))
    keys, identity = _keys(found, where, _SIMPLE_KEYS), _identity(found, where)
    kind = strict_json.text(found, "keyType", where)
    if kind in _OTHER_KEY_TYPES:
        return Reject(f"{where}.keyType: {kind} is not supported, only {_GPG}")
    if kind != _GPG:
        raise CorruptData(f"{where}.keyType: {kind!r} is not {_GPG}")
    return SignedBy(keys, identity)


def _sigstore_signed(found: Fields, where: str) -> Requirement:
    strict_json.only(found, where, required=("type",), optional=(*_SIGSTORE_KEYS, *_BEYOND, "signedIdentity"))
    identity = _identity(found, where)
    for name in _BEYOND:
        if name in found:
            return Reject(f"{where}.{name}: not supported; only public keys are (keyPath, keyPaths, keyData, keyDatas)")
    return SigstoreSigned(_keys(found, where, _SIGSTORE_KEYS), identity)


def _identity(found: Fields, where: str) -> IdentityRule:
    if "signedIdentity" not in found:
        return IdentityRule()
    return signed_identity.parse(found["signedIdentity"], f"{where}.signedIdentity")


def _keys(found: Fields, where: str, names: Sequence[str]) -> Keys:
    given = [name for name in names if name in found]
    if len(given) != 1:
        raise CorruptData(f"{where}: exactly one of {', '.join(names)} must be given, not {' and '.join(given) or 'none'}")
    name = given[0]
    several = strict_json.texts(found, name, where) if name.endswith("s") else (strict_json.text(found, name, where),)
    if "Path" in name:
        for path in several:
            if not path.startswith("/"):
                raise CorruptData(f"{where}.{name}: {path!r} must be an absolute path")
        return Keys(name, paths=several)
    return Keys(name, data=tuple(_decoded(item, f"{where}.{name}") for item in several))


def _decoded(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise CorruptData(f"{where}: it is not base64: {exc}") from exc
