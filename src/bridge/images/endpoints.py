"""The URLs that one pull asks, made of places: scheme, proxy, what is known of each while the pull goes on. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from bridge.images.auth import Credentials
from bridge.images.places import Place


@dataclass(slots=True)
class Endpoint:
    """A place over one scheme. ``authorization`` is the header value that it last accepted or asked for.

    ``credentials`` are the request's; ``looked_up`` says that stored ones were asked for, too; ``answered``, that the scheme is right.
    """

    place: Place
    scheme: str
    credentials: Credentials = field(default_factory=Credentials, repr=False)
    authorization: str = field(default="", repr=False)
    looked_up: bool = False
    answered: bool = False

    @property
    def host(self) -> str:
        """host[:port]."""
        return self.place.host

    @property
    def plain(self) -> bool:
        """Whether it is spoken to without TLS."""
        return self.scheme == "http"

    def url(self, path: str) -> str:
        """The URL of ``path`` (``manifests/TAG``) in the repository."""
        return f"{self}/{self.place.name}/{path}" if not str(self).endswith("/") else f"{self}{self.place.name}/{path}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.place.api.partition('://')[2]}"


def of(places: Sequence[Place], who: Credentials, plain: set[str]) -> list[Endpoint]:
    """The endpoints of ``places`` in their order. ``plain`` are hosts known to speak only http.

    One that is insecure or on this machine is asked over https and, if that can't be had, over http. Only the registry itself
    gets ``who``.
    """
    found = []
    for place in places:
        schemes = [urlsplit(place.api).scheme]
        if not place.scheme_known and (place.insecure or is_loopback(place.host)):
            schemes = ["http", "https"] if place.host in plain else ["https", "http"]
        found += [Endpoint(place, scheme, who if place.registry else Credentials()) for scheme in schemes]
    return found


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
