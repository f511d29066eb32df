"""A client of the OCI distribution API (distribution-spec v1.1, pull only) on aiohttp.

A ``Repository`` asks its endpoints in order: the mirrors, then the registry itself. Errors: what can't be reached or answers
5xx and 429 is RegistryUnavailable; a clear no is ImagePullFailed with the registry's own words. Credentials go to the registry
only, never to a mirror, and never into a message.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TypeVar

import aiohttp
import anyio

from bridge import log
from bridge.errors import BridgeError, CorruptData, ImagePullFailed, RegistryUnavailable
from bridge.images import endpoints, routing
from bridge.images.auth import Credentials
from bridge.images.auth_files import AuthFiles
from bridge.images.endpoints import Endpoint
from bridge.images.http import IF_NONE_MATCH, NOT_MODIFIED, Exchange, on_network
from bridge.images.manifest import ACCEPT, Descriptor
from bridge.images.reference import Reference
from bridge.images.settings import ImageSettings
from bridge.images.transfer import Busy, Pace, Untrusted, pause

T = TypeVar("T")
_logger = log.get("images.registry")
_BUFFERS = 1 << 20
"""What all transfers together keep of what came and was not yet passed on, roughly (the client holds up to twice its limit)."""
_SMALLEST_BUFFER = 1 << 16
_ATTEMPTS = 5
"""Transfers of one blob in a row that bring nothing before we give up."""
_TRIES = 3
"""How often one endpoint is asked for a manifest while it is busy or unreachable."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A manifest as it came: its bytes, what the registry called it, and the digest of the bytes."""

    data: bytes = field(repr=False)
    media_type: str
    digest: str


class RegistryClient:
    """The connections of all pulls. An async context manager."""

    def __init__(self, settings: ImageSettings) -> None:
        self._settings = settings
        self._plain: set[str] = set()
        session = aiohttp.ClientSession(
            auto_decompress=False,
            read_bufsize=max(_SMALLEST_BUFFER, _BUFFERS // (2 * settings.parallel)),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=settings.connect_seconds),
            connector=aiohttp.TCPConnector(limit=0, limit_per_host=settings.parallel + 4),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "cri-bridge", "Accept-Encoding": "identity"},
            trust_env=False,  # it would also read ~/.netrc; proxies are passed with each request
        )
        self.exchange = Exchange(session, settings, AuthFiles(settings.auth_files, settings.helper_seconds), self._plain)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self.exchange.session.close()

    async def repository(self, reference: Reference, who: Credentials) -> Repository:
        """The repository of ``reference`` for one pull. Raises ImagePullFailed when it is blocked, ConfigError."""
        routes = await routing.route(reference, self._settings)
        return Repository(self.exchange, reference, endpoints.of(routes.places, who, self._plain))


class Repository:
    """One repository as one pull sees it; keeps the tokens it was given."""

    def __init__(self, exchange: Exchange, reference: Reference, places: list[Endpoint]) -> None:
        self._exchange = exchange
        self._name = reference.repository
        self._endpoints = places
        self._settings = exchange.settings

    async def manifest(self, target: str) -> Fetched:
        """The manifest of a tag or digest. Raises ImagePullFailed, RegistryUnavailable, CorruptData."""
        found = await self.newer_manifest(target, "")
        assert found is not None
        return found

    async def newer_manifest(self, target: str, known: str) -> Fetched | None:
        """As ``manifest``, but None when the registry says that it is still the one with the digest ``known`` ("": none is)."""
        condition = {IF_NONE_MATCH: f'"{known}"'} if known else {}

        async def attempt(endpoint: Endpoint) -> Fetched | None:
            async with self._exchange.get(endpoint, f"manifests/{target}", {"Accept": ACCEPT, **condition}) as response:
                if response.status == NOT_MODIFIED:
                    return None
                data = await self._exchange.body(endpoint, response, self._settings.limits.manifest_bytes)
                algorithm = target.partition(":")[0] if ":" in target else "sha256"
                digest = f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
                if ":" in target and digest != target:
                    raise CorruptData(f"{endpoint} sent a manifest with the digest {digest} for {self._name}@{target}")
                return Fetched(data, response.headers.get("Content-Type", ""), digest)

        return await self._first([each for each in self._endpoints if each.place.resolves or ":" in target], attempt)

    async def small_blob(self, wanted: Descriptor) -> bytes:
        """A config blob, checked. Raises as ``manifest`` does."""
        if wanted.size > self._settings.limits.manifest_bytes:
            raise CorruptData(f"{wanted.digest} has {wanted.size} bytes; at most {self._settings.limits.manifest_bytes} are accepted")
        async with aclosing(self.blob(wanted)) as chunks:
            data = b"".join([chunk async for chunk in chunks])
        algorithm = wanted.digest.partition(":")[0]
        if f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}" != wanted.digest:
            raise CorruptData(f"{wanted.digest} is damaged")
        return data

    async def blob(self, wanted: Descriptor, *, last_first: bool = False) -> AsyncGenerator[bytes]:
        """The bytes of a blob, ``wanted.size`` of them; a broken transfer goes on where it ended. The digest is the caller's to check.

        ``last_first`` asks the registry before its mirrors, for use after one of them sent damaged bytes.
        """
        places = self._endpoints[::-1] if last_first else self._endpoints
        done = 0
        failures: list[BridgeError] = []
        while done < wanted.size:
            endpoint = places[len(failures) % len(places)]
            before = done
            try:
                async with aclosing(self._transfer(endpoint, wanted, done)) as chunks:
                    async for chunk in chunks:
                        done += len(chunk)
                        yield chunk
            except (RegistryUnavailable, ImagePullFailed) as exc:
                if done > before:
                    failures.clear()
                failures.append(exc)
                refused = len(failures) >= len(places) and all(isinstance(f, ImagePullFailed) for f in failures[-len(places) :])
                if refused or len(failures) >= max(_ATTEMPTS, len(places)):
                    raise
                if len(failures) % len(places) == 0:  # else the next place is another one
                    await self._pause(exc, len(failures))

    async def _transfer(self, endpoint: Endpoint, wanted: Descriptor, done: int) -> AsyncGenerator[bytes]:
        headers = {"Range": f"bytes={done}-"} if done else {}
        async with self._exchange.get(endpoint, f"blobs/{wanted.digest}", headers) as response:
            skip = done if response.status == 200 else 0
            left = wanted.size - done
            pace = Pace(self._settings.idle_seconds, self._settings.floor_bytes, self._settings.floor_seconds)
            while True:
                chunk = await on_network(endpoint, lambda: pace.wait(response.content.readany))
                if not chunk:
                    break
                kept, skip = chunk[skip:], max(0, skip - len(chunk))
                left -= len(kept)
                if left < 0:
                    raise CorruptData(f"{endpoint} sent more than the {wanted.size} bytes of {wanted.digest}")
                if kept:
                    yield kept
            if left:
                raise RegistryUnavailable(f"{endpoint} ended {wanted.digest} {left} bytes early")

    async def _pause(self, failure: BridgeError, tries: int) -> None:
        """Wait as long as the registry asks, or a growing while; raise ``failure`` when it asks for too long."""
        seconds = pause(failure, tries, self._settings.patience)
        if seconds is None:
            raise failure
        await anyio.sleep(seconds)

    async def _first(self, places: list[Endpoint], attempt: Callable[[Endpoint], Awaitable[T]]) -> T:
        """The first endpoint's answer that is one. The registry itself is asked last and has the last word."""
        failures: list[tuple[Endpoint, BridgeError]] = []
        for endpoint in places:
            if any(other.host == endpoint.host and (other.answered or _speaks(exc)) for other, exc in failures):
                continue  # it speaks the other scheme
            try:
                answer = await self._persistently(endpoint, attempt, last=endpoint is places[-1])
                self._settle(endpoint)
                return answer
            except (ImagePullFailed, RegistryUnavailable, CorruptData) as exc:
                _logger.debug("%s: %s", endpoint, exc)
                failures.append((endpoint, exc))
        if not failures:
            raise ImagePullFailed(f"{self._name}: every configured host serves digests only, and a tag was asked for")
        for place, earlier in failures[:-1]:
            _logger.warning("%s: before the registry itself failed, %s had: %s", self._name, place, earlier)
        raise failures[-1][1]

    def _settle(self, endpoint: Endpoint) -> None:
        """Its scheme works: the other one of the same place need not be tried again."""
        self._endpoints = [each for each in self._endpoints if each is endpoint or each.place is not endpoint.place]

    async def _persistently(self, endpoint: Endpoint, attempt: Callable[[Endpoint], Awaitable[T]], *, last: bool) -> T:
        """``attempt``, repeated while the endpoint is busy or away; but only the last one, for behind the others stands another."""
        for tries in range(1, _TRIES if last else 1):
            try:
                return await attempt(endpoint)
            except Untrusted:
                raise
            except RegistryUnavailable as exc:
                await self._pause(exc, tries)
        return await attempt(endpoint)


def _speaks(failure: BridgeError) -> bool:
    """Whether a host that failed so does speak the scheme in which it was asked."""
    return isinstance(failure, Untrusted | Busy) or not isinstance(failure, RegistryUnavailable)
