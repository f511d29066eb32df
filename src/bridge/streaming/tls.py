"""The server's certificate, read again when its files change, so that a renewed one needs no restart."""

from __future__ import annotations

import ssl
from pathlib import Path

from bridge import log
from bridge.errors import ConfigError

_logger = log.get("streaming.tls")


class Certificate:
    """A certificate with its key and, with ``authorities``, the demand that clients have one of theirs. Blocks: call it in a thread."""

    def __init__(self, certificate: Path, key: Path, authorities: Path | None = None, *, section: str = "streaming") -> None:
        self._certificate = certificate
        self._key = key
        self._authorities = authorities
        self._section = section  # of the configuration, for errors
        self._seen: tuple[tuple[int, int], ...] = ()
        self._context: ssl.SSLContext | None = None
        self._fault = ""

    def context(self) -> ssl.SSLContext:
        """For the next connection. Raises ConfigError at first only: later, what is broken is logged and the last good one serves."""
        try:
            seen = tuple(_stamp(path, self._section) for path in (self._certificate, self._key, self._authorities) if path is not None)
            if self._context is None or seen != self._seen:
                self._seen = seen  # also of broken files: they are logged once, not for each connection
                self._context = self._load()
        except ConfigError as exc:
            if self._context is None:
                raise
            if str(exc) != self._fault:
                self._fault = str(exc)
                _logger.warning("the renewed certificate can't be used, the last one serves on: %s", exc)
        return self._context

    def _load(self) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.minimum_version = ssl.TLSVersion.TLSv1_2
        made.options |= ssl.OP_NO_RENEGOTIATION
        try:
            made.load_cert_chain(self._certificate, self._key, password=_no_password)
            if self._authorities is not None:
                made.load_verify_locations(self._authorities)
                made.verify_mode = ssl.CERT_REQUIRED
        except (OSError, ValueError) as exc:
            files = ", ".join(str(path) for path in (self._certificate, self._key, self._authorities) if path is not None)
            raise ConfigError(f"{self._section}.tls_*: {files}: are no PEM certificate, its key and authorities: {exc}") from exc
        return made


def _no_password() -> str:
    """Else OpenSSL would ask at the terminal."""
    return ""


def _stamp(path: Path, section: str) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as exc:
        raise ConfigError(f"{section}.tls_*: {path}: {exc.strerror}") from exc
    return found.st_mtime_ns, found.st_ino
