"""Where the content of a registry can be had, in the order in which to ask: mirrors first, the registry last. Pure."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from bridge.errors import ConfigError
from bridge.images.auth import Credentials
from bridge.images.reference import DEFAULT_DOMAIN
from bridge.images.settings import ImageSettings, Registry

_DOCKER_HUB = "registry-1.docker.io"


@dataclass(slots=True)
class Endpoint:
    """One base URL without trailing slash. ``authorization`` is the header value that it last accepted or asked for."""

    base: str
    host: str
    insecure: bool
    credentials: Credentials = field(default_factory=Credentials, repr=False)
    authorization: str = field(default="", repr=False)

    def __str__(self) -> str:
        return self.base


def of(domain: str, who: Credentials, settings: ImageSettings, plain: set[str]) -> list[Endpoint]:
    """The endpoints of the registry ``domain``. ``plain`` are hosts known to speak only http. Raises ConfigError for a bad mirror URL.

    A registry that is insecure or on this machine is asked over https and, if that can't be had, over http.
    """
    entry = settings.registries.get(domain, Registry())
    found = [_mirror(url, entry) for url in entry.mirrors]
    host = _DOCKER_HUB if domain == DEFAULT_DOMAIN else domain
    schemes = ["https"]
    if entry.insecure or is_loopback(host):
        schemes = ["http", "https"] if host in plain else ["https", "http"]
    return found + [Endpoint(f"{scheme}://{host}", host, entry.insecure or scheme == "http", who) for scheme in schemes]


def _mirror(url: str, entry: Registry) -> Endpoint:
    parts = urlsplit(url if "://" in url else f"https://{url}")
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.username:
        raise ConfigError(f"registry mirror {parts.scheme}://{parts.hostname}: a mirror is a plain http:// or https:// URL")
    return Endpoint(f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}", parts.netloc, entry.insecure or parts.scheme == "http")


def is_loopback(host: str) -> bool:
    """Whether ``host`` (with or without port) is this machine, by its spelling."""
    name = urlsplit(f"//{host}").hostname or ""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def proxy_of(url: str) -> str | None:
    """The proxy that the environment (HTTPS_PROXY, HTTP_PROXY, NO_PROXY) names for ``url``; never one for this machine itself."""
    parts = urlsplit(url)
    if is_loopback(parts.netloc.rpartition("@")[2]) or proxy_bypass(parts.netloc):
        return None
    return getproxies_environment().get(parts.scheme)


def plain_words(exc: BaseException) -> str:
    """What went wrong, without URL queries (they may hold signatures)."""
    if isinstance(exc, TimeoutError):
        return "nothing arrived in time"
    return str(exc).partition("?")[0] or type(exc).__name__
