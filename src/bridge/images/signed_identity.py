"""Which image a signature may claim to be: the ``signedIdentity`` rules of containers-policy.json(5). Pure.

The name in a signature is never completed with a tag: one without tag and digest stands for its repository only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from bridge.errors import CorruptData, InvalidRequest
from bridge.images import reference, strict_json
from bridge.images.reference import Reference

Kind = Literal["matchExact", "matchRepoDigestOrExact", "matchRepository", "exactReference", "exactRepository", "remapIdentity"]


@dataclass(frozen=True, slots=True)
class IdentityRule:
    """One rule. ``named`` is the reference or repository of the exact… kinds; ``prefix`` and ``signed_prefix`` are remapIdentity's."""

    kind: Kind = "matchRepoDigestOrExact"
    named: Reference | None = None
    prefix: str = ""
    signed_prefix: str = ""

    def accepts(self, image: Reference, claimed: str) -> bool:
        """Whether a signature that claims to be for ``claimed`` may stand for ``image``, the name that was asked for."""
        try:
            signed = named(claimed)
            match self.kind:
                case "matchExact":
                    return not _bare(signed) and signed == image
                case "matchRepository":
                    return signed.repository == image.repository
                case "exactReference":
                    return not _bare(signed) and signed == self.named
                case "exactRepository":
                    return self.named is not None and signed.repository == self.named.repository
                case "remapIdentity":
                    return _digest_or_exact(self._remapped(image), signed)
                case _:
                    return _digest_or_exact(image, signed)
        except InvalidRequest:
            return False

    def _remapped(self, image: Reference) -> Reference:
        if image.repository != self.prefix and not image.repository.startswith(self.prefix + "/"):
            return image
        return named(self.signed_prefix + str(image).removeprefix(self.prefix))

    def __str__(self) -> str:
        match self.kind:
            case "exactReference" | "exactRepository":
                return f"{self.kind} {self.named}"
            case "remapIdentity":
                return f"{self.kind} {self.prefix} to {self.signed_prefix}"
            case _:
                return self.kind


def named(text: str) -> Reference:
    """The reference ``text`` as it stands, without a tag where it has none. Raises InvalidRequest."""
    found = reference.parse(text)
    written = "@" in text or ":" in text.rpartition("/")[2]
    return found if written else replace(found, tag="")


def _bare(signed: Reference) -> bool:
    return not signed.tag and not signed.digest


def _digest_or_exact(image: Reference, signed: Reference) -> bool:
    """With a tag the names must be equal; by digest, which the image's content has been held to, the repositories."""
    if _bare(signed):
        return False
    return signed == image if image.tag else signed.repository == image.repository


def parse(value: object, where: str) -> IdentityRule:
    """A ``signedIdentity`` object. Raises CorruptData, naming the field."""
    found = strict_json.fields(value, where)
    kind = strict_json.text(found, "type", where)
    match kind:
        case "matchExact" | "matchRepoDigestOrExact" | "matchRepository":
            strict_json.only(found, where, required=("type",))
            return IdentityRule(kind)
        case "exactReference":
            strict_json.only(found, where, required=("type", "dockerReference"))
            whole = _named(found, "dockerReference", where)
            if _bare(whole):
                raise CorruptData(f"{where}.dockerReference: {whole} has neither tag nor digest")
            return IdentityRule(kind, whole)
        case "exactRepository":
            strict_json.only(found, where, required=("type", "dockerRepository"))
            return IdentityRule(kind, _named(found, "dockerRepository", where))
        case "remapIdentity":
            strict_json.only(found, where, required=("type", "prefix", "signedPrefix"))
            return IdentityRule(kind, None, _prefix(found, "prefix", where), _prefix(found, "signedPrefix", where))
        case _:
            raise CorruptData(f"{where}.type: {kind!r} is no rule for identities (known: {', '.join(Kind.__args__)})")  # type: ignore[attr-defined]


def _named(found: strict_json.Fields, name: str, where: str) -> Reference:
    text = strict_json.text(found, name, where)
    try:
        return named(text)
    except InvalidRequest as exc:
        raise CorruptData(f"{where}.{name}: {exc.message.removeprefix('image: ')}") from exc


def _prefix(found: strict_json.Fields, name: str, where: str) -> str:
    """A host, a namespace or a repository in its full form."""
    text = strict_json.text(found, name, where)
    try:
        probe = reference.parse(f"{text}/probe")  # what it is a prefix of
    except InvalidRequest as exc:
        raise CorruptData(f"{where}.{name}: {text!r} is no registry host, namespace or repository") from exc
    if probe.repository != f"{text}/probe":
        raise CorruptData(f"{where}.{name}: {text!r} must be written in full, with its registry: {probe.repository.removesuffix('/probe')}")
    return text
