"""containers-registries.d(5): where a registry's simple signing signatures lie, and whether to look for sigstore's beside its images.

Parsing is pure; ``load`` reads every ``*.yaml`` of the directory. Only what reading needs is looked at: staging areas are for signers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from bridge.errors import ConfigError
from bridge.images import policy
from bridge.images.reference import Reference

DEFAULT_LOOKASIDE = "file:///var/lib/containers/sigstore"
"""Where root's skopeo and Podman put the signatures that they make, unless told otherwise."""


@dataclass(frozen=True, slots=True)
class Section:
    """What is said of one scope; "" and None are for what is left to wider scopes."""

    lookaside: str = ""
    attachments: bool | None = None


@dataclass(frozen=True, slots=True)
class RegistriesD:
    """The whole directory. ``sections`` are by scope, as in policies; ``default`` is default-docker."""

    sections: Mapping[str, Section] = field(default_factory=dict)
    default: Section = field(default_factory=Section)

    def lookaside(self, image: Reference) -> str:
        """The base URL of the signature store for ``image``: http, https or file."""
        return next((section.lookaside for section in self._fitting(image) if section.lookaside), DEFAULT_LOOKASIDE)

    def attachments(self, image: Reference) -> bool:
        """Whether sigstore signatures are looked for beside ``image`` in its registry."""
        return next((section.attachments for section in self._fitting(image) if section.attachments is not None), False)

    def _fitting(self, image: Reference) -> list[Section]:
        """Narrowest first."""
        return [*(self.sections[scope] for scope in policy.scopes(image) if scope in self.sections), self.default]


def load(directory: Path | None) -> RegistriesD:
    """The directory's files; an absent one is empty. Blocks. Raises ConfigError naming file and key."""
    if directory is None:
        return RegistriesD()
    sections: dict[str, Section] = {}
    origins: dict[str, Path] = {}
    for file in sorted(directory.glob("*.yaml")):
        try:
            found = parse(file.read_text("utf-8"), str(file))
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(f"{file}: {exc}") from exc
        for scope, section in found.items():
            if scope in origins:
                raise ConfigError(f"{file}: {scope or 'default-docker'} is defined in {origins[scope]} as well")
            origins[scope], sections[scope] = file, section
    return RegistriesD({scope: section for scope, section in sections.items() if scope}, sections.get("", Section()))


def parse(text: str, where: str) -> dict[str, Section]:
    """The sections of one file by scope, "" being default-docker. Raises ConfigError."""
    import yaml  # a slow import, for the few who have such files

    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        raise ConfigError(f"{where}: {' '.join(str(exc).split())}") from exc
    whole = _mapping({} if document is None else document, where)
    found = {str(scope): _section(value, f"{where}: docker[{str(scope)!r}]") for scope, value in _part(whole, "docker", where).items()}
    if "default-docker" in whole:
        found[""] = _section(whole["default-docker"], f"{where}: default-docker")
    return found


def _part(whole: Mapping[object, object], name: str, where: str) -> Mapping[object, object]:
    value = whole.get(name)
    return {} if value is None else _mapping(value, f"{where}: {name}")


def _mapping(value: object, where: str) -> Mapping[object, object]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: must be a mapping")
    return value


def _section(value: object, where: str) -> Section:
    found = _mapping({} if value is None else value, where)
    lookaside = found.get("lookaside") or found.get("sigstore") or ""  # the second is its name in old files
    attachments = found.get("use-sigstore-attachments")
    if not isinstance(lookaside, str):
        raise ConfigError(f"{where}.lookaside: must be a URL")
    if lookaside and not _readable(lookaside):
        raise ConfigError(f"{where}.lookaside: {lookaside!r} must be a http, https or file URL, without user and query")
    if attachments is not None and not isinstance(attachments, bool):
        raise ConfigError(f"{where}.use-sigstore-attachments: must be true or false")
    return Section(lookaside, attachments)


def _readable(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    if parts.query or parts.fragment or parts.username:
        return False
    return (
        parts.path.startswith("/") and not parts.netloc
        if parts.scheme == "file"
        else parts.scheme in ("http", "https") and bool(parts.netloc)
    )
