"""TLS contexts for registries: the system's authorities, a host's further ones, client certificates, or no check at all."""

from __future__ import annotations

import ssl
from functools import lru_cache
from pathlib import Path

from bridge.errors import ConfigError
from bridge.images.places import TlsFiles


def context(files: TlsFiles, *, insecure: bool) -> ssl.SSLContext | bool:
    """What aiohttp's ``ssl`` takes: True for the system's rules. Blocks on first use of the files. Raises ConfigError naming the file."""
    if not files:
        return not insecure
    stamps = tuple(_stamp(path) for path in (*files.authorities, *(path for pair in files.clients for path in pair)))
    return _made(files, insecure, stamps)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}") from exc
    return found.st_mtime_ns, found.st_ino


@lru_cache(maxsize=64)
def _made(files: TlsFiles, insecure: bool, stamps: tuple[tuple[int, int], ...]) -> ssl.SSLContext:
    """``stamps`` make a renewed certificate a new context."""
    del stamps
    made = ssl.create_default_context()
    for authority in files.authorities:
        try:
            made.load_verify_locations(authority)
        except (OSError, ssl.SSLError) as exc:
            raise ConfigError(f"{authority}: is no PEM file of certificates") from exc
    for certificate, key in files.clients:
        try:
            made.load_cert_chain(certificate, key)
        except (OSError, ssl.SSLError) as exc:
            raise ConfigError(f"{certificate}, {key}: are no PEM certificate with its key") from exc
    if insecure:
        made.check_hostname = False
        made.verify_mode = ssl.CERT_NONE
    return made
