"""Image references: ``[host/]path[:tag][@digest]``, normalised as Docker does (distribution/reference grammar). Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from bridge.errors import InvalidRequest
from bridge.images.manifest import is_digest

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"
_ALIASES = {"index.docker.io": DEFAULT_DOMAIN, "registry-1.docker.io": DEFAULT_DOMAIN}
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_DOMAIN = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?::[0-9]{{1,5}})?")
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_HEX_ID = re.compile(r"[0-9a-f]{64}")
_MAX_NAME = 255


@dataclass(frozen=True, slots=True)
class Reference:
    """A normalised reference. ``tag`` and ``digest`` may each be ""; ``parse`` gives a tag when neither was written."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def repository(self) -> str:
        """``host/path``."""
        return f"{self.domain}/{self.path}"

    def __str__(self) -> str:
        return self.repository + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    def canonical(self) -> Reference:
        """What this reference is recorded as: a digest makes the tag a mere remark, so it is dropped."""
        return replace(self, tag="") if self.digest else self


def parse(text: str) -> Reference:
    """The reference ``text``. Raises InvalidRequest that says which part is wrong."""
    if not text:
        raise InvalidRequest("the image reference is empty", field="image")
    if "://" in text:
        raise InvalidRequest(f"{text!r}: an image reference has no scheme; leave {text.partition('://')[0]}:// out", field="image")
    if text != text.strip() or any(character.isspace() for character in text):
        raise InvalidRequest(f"{text!r} has a blank in it", field="image")
    rest, at, digest = text.partition("@")
    if at and not is_digest(digest):
        raise InvalidRequest(f"{text!r}: {digest!r} is not a digest (sha256: and 64 lower-case hex digits)", field="image")
    domain, path = _split_domain(rest)
    path, colon, tag = path.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise InvalidRequest(f"{text!r}: {tag!r} is not a tag (letters, digits, _ . -, at most 128)", field="image")
    if not _DOMAIN.fullmatch(domain):
        raise InvalidRequest(f"{text!r}: {domain!r} is not a registry host", field="image")
    for component in path.split("/"):
        if not _COMPONENT.fullmatch(component):
            hint = " (it must be lower-case)" if component != component.lower() else ""
            raise InvalidRequest(f"{text!r}: {component!r} is not a part of a repository name{hint}", field="image")
    if len(domain) + 1 + len(path) > _MAX_NAME:
        raise InvalidRequest(f"the repository name of {text[:40]!r}… is longer than {_MAX_NAME} characters", field="image")
    return Reference(domain, path, tag or ("" if digest else DEFAULT_TAG), digest)


def _split_domain(rest: str) -> tuple[str, str]:
    """The host and the path: the first component is a host when it looks like one (a dot, a port, localhost, capitals)."""
    first, _, others = rest.partition("/")
    domain, path = (first, others) if _names_host(rest) else (DEFAULT_DOMAIN, rest)
    domain = _ALIASES.get(domain, domain)
    if domain == DEFAULT_DOMAIN and "/" not in path.partition(":")[0]:
        path = f"library/{path}"
    return domain, path


def _names_host(rest: str) -> bool:
    first, slash, _ = rest.partition("/")
    return bool(slash) and ("." in first or ":" in first or first == "localhost" or first != first.lower())


def is_short(text: str) -> bool:
    """Whether ``text`` is a name without a registry (``busybox:1``, ``team/tool``), and no image id."""
    return not is_id(text) and not _names_host(text)


def is_id(text: str) -> bool:
    """Whether ``text`` is a whole image id: ``sha256:`` and 64 hex digits, or those digits alone (which no repository may be)."""
    return _HEX_ID.fullmatch(text.removeprefix("sha256:")) is not None


def id_prefix(text: str) -> str | None:
    """The hex digits of a possible abbreviated id, or None when ``text`` can't be one."""
    digits = text.removeprefix("sha256:")
    return digits if re.fullmatch(r"[0-9a-f]{3,64}", digits) else None
