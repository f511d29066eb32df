"""containerd's ``hosts.toml`` (docs/hosts.md of containerd): hosts of a registry with their capabilities, certificates, headers.

``find`` reads the directory of one registry below a root such as /etc/containerd/certs.d; what is in it is small and read for
each pull, so that a change holds at once, as with containerd.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bridge.errors import ConfigError
from bridge.images import places
from bridge.images.places import Place, Routes, TlsFiles
from bridge.images.reference import Reference

_CAPABILITIES = frozenset(("pull", "resolve", "push"))
_DEFAULT = "_default"


def find(root: Path, reference: Reference) -> Routes | None:
    """The routes by the first of ``root``/<host_port_>, ``root``/<host:port> and ``root``/_default; None without. Blocks. ConfigError."""
    for directory in _directories(root, reference.domain):
        if not directory.is_dir():
            continue
        file = directory / "hosts.toml"
        try:
            text = file.read_text("utf-8")
        except FileNotFoundError:
            return Routes((places.registry(reference, tls=certificates(directory)),))
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(f"{file}: {exc}") from exc
        return parse(text, file, reference)
    return None


def _directories(root: Path, domain: str) -> list[Path]:
    host, colon, port = domain.rpartition(":")
    with_port = [root / f"{host}_{port}_"] if colon and not domain.endswith("]") else []
    return [*with_port, root / domain, root / _DEFAULT]


def certificates(directory: Path) -> TlsFiles:
    """Docker's way: ``*.crt`` are authorities, ``NAME.cert`` with ``NAME.key`` identifies the client. Blocks. Raises ConfigError."""
    try:
        found = sorted(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return TlsFiles()
    except OSError as exc:
        raise ConfigError(f"{directory}: {exc}") from exc
    clients = []
    for certificate in (path for path in found if path.suffix == ".cert"):
        key = certificate.with_suffix(".key")
        if key not in found:
            raise ConfigError(f"{certificate}: its key {key.name} is missing")
        clients.append((certificate, key))
    return TlsFiles(tuple(path for path in found if path.suffix == ".crt"), tuple(clients))


def parse(text: str, file: Path, reference: Reference) -> Routes:
    """The places that the file names for ``reference``, in its order; the server last. Raises ConfigError naming file and key."""
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        raise ConfigError(f"{file}: {exc}") from exc
    hosts = table.get("host", {})
    if not isinstance(hosts, dict) or not all(isinstance(each, dict) for each in hosts.values()):
        raise ConfigError(f'{file}: host: must hold tables such as [host."https://mirror.example"]')
    found = [_place(url, each, reference, file, f'host."{url}"') for url, each in hosts.items()]
    server = table.get("server", "")
    if not isinstance(server, str):
        raise ConfigError(f"{file}: server: must be a URL")
    settings = {key: value for key, value in table.items() if key not in ("host", "server")}
    own = _place(server or f"https://{places.own_host(reference.domain)}", settings, reference, file, "server")
    if not any(place is not None and place.api == own.api for place in found if own is not None):
        found.append(own)
    usable = tuple(place for place in found if place is not None)
    return Routes(usable, "" if usable else f"{file} leaves no host to pull from")


def _place(url: str, table: Mapping[str, Any], reference: Reference, file: Path, key: str) -> Place | None:
    """One host; None when it may neither pull nor resolve."""
    where = f"{file}: {key}"
    given = table.get("capabilities", ["pull", "resolve"])
    if not isinstance(given, list) or not all(isinstance(each, str) and each in _CAPABILITIES for each in given):
        raise ConfigError(f"{where}: capabilities: must be a list of {', '.join(sorted(_CAPABILITIES))}")
    if "pull" not in given:
        return None
    place = places.mirror(
        url, reference.path, where, insecure=_flag(table, "skip_verify", where), override_path=_flag(table, "override_path", where)
    )
    own = place.host == places.own_host(reference.domain)
    return replace(
        place,
        registry=own,
        resolves="resolve" in given,
        namespace="" if own else reference.domain,
        tls=TlsFiles(_paths(table.get("ca", []), file, f"{where}: ca"), _clients(table.get("client", []), file, where)),
        headers=_headers(table.get("header", {}), where),
    )


def _flag(table: Mapping[str, Any], key: str, where: str) -> bool:
    value = table.get(key, False)
    if not isinstance(value, bool):
        raise ConfigError(f"{where}: {key}: must be true or false, not {value!r}")
    return value


def _paths(value: object, file: Path, where: str) -> tuple[Path, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{where}: must be a file name or a list of file names")
    return tuple(file.parent / name for name in names)


def _clients(value: object, file: Path, where: str) -> tuple[tuple[Path, Path], ...]:
    """One name (certificate and key in one file), a list of such names, or a list of [certificate, key] pairs."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list):
        raise ConfigError(f"{where}: client: must be a file name or a list")
    found = []
    for item in items:
        pair = [item, item] if isinstance(item, str) else item
        if not isinstance(pair, list) or len(pair) not in (1, 2) or not all(isinstance(name, str) for name in pair):
            raise ConfigError(f"{where}: client: {item!r} must be a file name or [certificate, key]")
        found.append((file.parent / pair[0], file.parent / (pair[1] if len(pair) == 2 and pair[1] else pair[0])))
    return tuple(found)


def _headers(value: object, where: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: header: must be a table")
    found = {}
    for name, content in value.items():
        lines = [content] if isinstance(content, str) else content
        if not isinstance(lines, list) or not all(isinstance(line, str) and line.isprintable() for line in lines):
            raise ConfigError(f"{where}: header.{name}: must be a string or a list of strings")
        found[name] = ", ".join(lines)
    return found
