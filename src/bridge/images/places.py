"""Where a repository's content may be had: what every dialect of registry configuration is translated into. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from bridge.errors import ConfigError
from bridge.images.reference import DEFAULT_DOMAIN, Reference

DOCKER_HUB = "registry-1.docker.io"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Certificates for one host: further authorities, and (certificate, key) pairs to prove oneself with. PEM files."""

    authorities: tuple[Path, ...] = ()
    clients: tuple[tuple[Path, Path], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.authorities or self.clients)


@dataclass(frozen=True, slots=True)
class Place:
    """One base URL and the repository's name there.

    ``api`` is the URL below which repositories lie (``https://host/v2``), ``name`` the repository's own name there, which a
    mirror may rewrite. ``scheme_known`` False: https first, http if that can't be had and the place is insecure or on this
    machine. ``registry`` tells the registry itself, which alone gets the request's credentials, from its mirrors. ``resolves``
    False: it serves digests, but may not say what a tag means. ``namespace`` is the ``ns`` parameter that caching mirrors want.
    """

    api: str
    name: str
    insecure: bool = False
    scheme_known: bool = True
    registry: bool = False
    resolves: bool = True
    namespace: str = ""
    tls: TlsFiles = field(default_factory=TlsFiles)
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def host(self) -> str:
        """host[:port]."""
        return urlsplit(self.api).netloc

    def __str__(self) -> str:
        return self.api.removesuffix("/v2")


@dataclass(frozen=True, slots=True)
class Routes:
    """The places for one reference, in the order in which to ask. ``blocked`` says why it may not be pulled at all, "" if it may."""

    places: Sequence[Place]
    blocked: str = ""


def own_host(domain: str) -> str:
    """The host that serves ``domain``: only Docker Hub's has another name than its references."""
    return DOCKER_HUB if domain == DEFAULT_DOMAIN else domain


def registry(reference: Reference, *, insecure: bool = False, tls: TlsFiles | None = None) -> Place:
    """The registry that ``reference`` itself names."""
    api = f"https://{own_host(reference.domain)}/v2"
    return Place(api, reference.path, insecure=insecure, scheme_known=False, registry=True, tls=tls or TlsFiles())


def mirror(url: str, name: str, where: str, *, insecure: bool = False, override_path: bool = False) -> Place:
    """A mirror by its base URL (or host[:port][/path]) for the repository ``name``.

    With ``override_path`` the URL's path is the whole API root and no /v2 is added. Raises ConfigError naming ``where``.
    """
    try:
        parts = urlsplit(url if "://" in url else f"https://{url}")
        port = parts.port
    except ValueError as exc:
        raise ConfigError(f"{where}: {url!r} is no URL: {exc}") from exc
    if port == 0 or parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment or parts.username:
        raise ConfigError(f"{where}: {parts.scheme}://{parts.hostname}: must be a plain http:// or https:// URL without user or query")
    path = parts.path.rstrip("/")
    if not override_path and not path.endswith("/v2"):
        path += "/v2"
    plain = parts.scheme == "http"
    return Place(f"{parts.scheme}://{parts.netloc}{path}", name, insecure=insecure or plain, scheme_known="://" in url or not insecure)


def with_certificates(place: Place, found: TlsFiles) -> Place:
    """``place`` with the certificates of its host, unless its own configuration named some."""
    return place if place.tls or not found else replace(place, tls=found)
