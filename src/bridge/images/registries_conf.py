"""containers-registries.conf(5), version 2: registries, mirrors, blocked registries, short names. What Podman and CRI-O read.

Parsing is pure; ``load`` reads the file and its drop-ins (``<file>.d/*.conf``, by name, later ones override).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bridge.errors import ConfigError
from bridge.images import places
from bridge.images.places import Place, Routes
from bridge.images.reference import Reference

ShortNameMode = Literal["enforcing", "permissive", "disabled"]
_MODES = ("enforcing", "permissive", "disabled")
_PULL_FROM = ("all", "digest-only", "tag-only")


@dataclass(frozen=True, slots=True)
class Mirror:
    """One ``[[registry.mirror]]``; ``tags`` and ``digests`` say for which pulls it is asked (pull-from-mirror)."""

    location: str
    insecure: bool = False
    tags: bool = True
    digests: bool = True


@dataclass(frozen=True, slots=True)
class Entry:
    """One ``[[registry]]``. ``prefix`` may begin with ``*.`` and then stands for every subdomain."""

    prefix: str
    location: str = ""
    insecure: bool = False
    blocked: bool = False
    mirrors: tuple[Mirror, ...] = ()


@dataclass(frozen=True, slots=True)
class RegistriesConf:
    """A whole file with its drop-ins. ``search`` are the registries of short names; ``aliases`` map short names to repositories."""

    entries: Mapping[str, Entry] = field(default_factory=dict)
    search: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    short_name_mode: ShortNameMode = "enforcing"
    credential_helpers: tuple[str, ...] = ()

    def routes(self, reference: Reference) -> Routes | None:
        """The places for ``reference``; None when no entry covers it. Raises ConfigError."""
        name = _full_name(reference)
        covering = [entry for entry in self.entries.values() if _matched(entry.prefix, name)]
        if not covering:
            return None
        entry = max(covering, key=lambda each: len(each.prefix))
        if entry.blocked:
            return Routes((), f"registry {entry.prefix} is blocked by registries.conf")
        matched = _matched(entry.prefix, name)
        asked = [mirror for mirror in entry.mirrors if (mirror.digests if reference.digest else mirror.tags)]
        found = [_mirror(entry, mirror, reference, matched) for mirror in asked]
        return Routes((*found, _primary(entry, reference, matched)))

    def candidates(self, short: str) -> list[str]:
        """The full names that the short name ``short`` (``name[:tag]`` without a host) may stand for, in order; [] means Docker Hub's.

        An alias is the only candidate. Several search registries in mode enforcing are ambiguous: ConfigError, as there is nobody to ask.
        """
        name, tail = _split_tail(short)
        if name in self.aliases:
            return [self.aliases[name] + tail]
        if len(self.search) > 1 and self.short_name_mode == "enforcing":
            raise ConfigError(
                f"the short name {short!r} is ambiguous: registries.conf has short-name-mode enforcing and several "
                f"unqualified-search-registries ({', '.join(self.search)}); write the registry, or add an alias"
            )
        return [f"{host}/{short}" for host in self.search]


def _full_name(reference: Reference) -> str:
    return f"{reference.domain}/{reference.path}"


def _split_tail(short: str) -> tuple[str, str]:
    ends = [position for position in (short.find("@"), short.find(":")) if position >= 0]
    end = min(ends, default=len(short))
    return short[:end], short[end:]


def _matched(prefix: str, name: str) -> str:
    """The part of ``name`` that ``prefix`` covers, "" for none. A prefix covers whole path components (or a host's subdomains)."""
    if prefix.startswith("*."):
        host = name.partition("/")[0]
        return host if host.partition(":")[0].endswith(prefix[1:]) or host.endswith(prefix[1:]) else ""
    return prefix if name == prefix or name.startswith(prefix + "/") else ""


def _rewritten(location: str, reference: Reference, matched: str) -> tuple[str, str]:
    """Host and repository at ``location``, which takes the place of the matched part."""
    host, _, path = (location + _full_name(reference).removeprefix(matched)).partition("/")
    return host, path


def _mirror(entry: Entry, mirror: Mirror, reference: Reference, matched: str) -> Place:
    host, path = _rewritten(mirror.location, reference, matched)
    return places.mirror(host, path, f"registries.conf: mirror {mirror.location!r} of {entry.prefix!r}", insecure=mirror.insecure)


def _primary(entry: Entry, reference: Reference, matched: str) -> Place:
    if not entry.location or _rewritten(entry.location, reference, matched) == (reference.domain, reference.path):
        return places.registry(reference, insecure=entry.insecure)
    host, path = _rewritten(entry.location, reference, matched)
    return places.registry(Reference(host, path), insecure=entry.insecure)


def load(path: Path) -> RegistriesConf:
    """The file at ``path`` and the drop-ins beside it; an absent file is an empty one. Blocks. Raises ConfigError naming file and key."""
    found = RegistriesConf()
    for file in (path, *sorted(path.with_name(path.name + ".d").glob("*.conf"))):
        try:
            text = file.read_text("utf-8")
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(f"{file}: {exc}") from exc
        found = overlaid(found, text, str(file))
    return found


def overlaid(below: RegistriesConf, text: str, where: str) -> RegistriesConf:
    """``below`` with what the file ``text`` says over it: entries and aliases by name, everything else whole. Raises ConfigError."""
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        raise ConfigError(f"{where}: {exc}") from exc
    if "registries" in table:
        raise ConfigError(f"{where}: this is version 1 of registries.conf ([registries.…]); write [[registry]] tables instead")
    entries = dict(below.entries)
    for index, each in enumerate(_list(table, "registry", where, dict)):
        entry = _entry(each, f"{where}: registry[{index}]")
        entries[entry.prefix] = entry
    mode = table.get("short-name-mode", below.short_name_mode)
    if mode not in _MODES:
        raise ConfigError(f"{where}: short-name-mode: {mode!r} is not one of {', '.join(_MODES)}")
    aliases = {**below.aliases, **_aliases(table.get("aliases", {}), where)}
    return RegistriesConf(
        entries=entries,
        search=tuple(_list(table, "unqualified-search-registries", where, str)) or below.search,
        aliases={name: target for name, target in aliases.items() if target},  # an empty target takes the alias away
        short_name_mode=mode,
        credential_helpers=tuple(_list(table, "credential-helpers", where, str)) or below.credential_helpers,
    )


def _aliases(table: object, where: str) -> dict[str, str]:
    if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
        raise ConfigError(f"{where}: aliases: must be a table of strings")
    return table


def _list(table: Mapping[str, Any], key: str, where: str, kind: type) -> list[Any]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(each, kind) for each in value):
        raise ConfigError(f"{where}: {key}: must be a list of {'tables' if kind is dict else 'strings'}")
    return value


def _entry(table: Mapping[str, Any], where: str) -> Entry:
    location, prefix = _text(table, "location", where), _text(table, "prefix", where)
    if not (location or prefix):
        raise ConfigError(f"{where}: needs a prefix or a location")
    if not prefix and location.startswith("*."):
        raise ConfigError(f"{where}: location {location!r} can't be a wildcard")
    by_digest = _flag(table, "mirror-by-digest-only", where)
    mirrors = _list(table, "mirror", where, dict)
    return Entry(
        prefix=(prefix or location).rstrip("/"),
        location=location.rstrip("/"),
        insecure=_flag(table, "insecure", where),
        blocked=_flag(table, "blocked", where),
        mirrors=tuple(_mirror_entry(each, by_digest, f"{where}.mirror[{index}]") for index, each in enumerate(mirrors)),
    )


def _mirror_entry(table: Mapping[str, Any], by_digest: bool, where: str) -> Mirror:
    location, pull = _text(table, "location", where), _text(table, "pull-from-mirror", where)
    if not location:
        raise ConfigError(f"{where}: needs a location")
    if pull and by_digest:
        raise ConfigError(f"{where}: pull-from-mirror can't stand beside the registry's mirror-by-digest-only")
    if pull and pull not in _PULL_FROM:
        raise ConfigError(f"{where}: pull-from-mirror: {pull!r} is not one of {', '.join(_PULL_FROM)}")
    only_digests, only_tags = by_digest or pull == "digest-only", pull == "tag-only"
    return Mirror(location.rstrip("/"), _flag(table, "insecure", where), tags=not only_digests, digests=not only_tags)


def _text(table: Mapping[str, Any], key: str, where: str) -> str:
    value = table.get(key, "")
    if not isinstance(value, str) or "://" in value:
        raise ConfigError(f"{where}: {key}: must be host[:port][/path] without a scheme, not {value!r}")
    return value


def _flag(table: Mapping[str, Any], key: str, where: str) -> bool:
    value = table.get(key, False)
    if not isinstance(value, bool):
        raise ConfigError(f"{where}: {key}: must be true or false, not {value!r}")
    return value
