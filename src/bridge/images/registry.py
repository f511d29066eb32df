"""A client of the OCI distribution API (distribution-spec v1.1, pull only) on aiohttp.

A ``Repository`` asks its endpoints in order: the mirrors, then the registry itself. Errors: what can't be reached or answers
5xx and 429 is RegistryUnavailable; a clear no is ImagePullFailed with the registry's own words. Credentials go to the registry
only, never to a mirror, and never into a message.
"""

from __future__ import annotations

import hashlib
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TypeVar

import aiohttp
import anyio

from bridge import log
from bridge.errors import BridgeError, CorruptData, ImagePullFailed, RegistryUnavailable
from bridge.images import auth as authentication
from bridge.images import endpoints
from bridge.images.auth import Credentials
from bridge.images.endpoints import Endpoint
from bridge.images.manifest import ACCEPT, Descriptor
from bridge.images.reference import Reference
from bridge.images.settings import ImageSettings
from bridge.images.transfer import Pace

T = TypeVar("T")
_logger = log.get("images.registry")
_BUFFER = 1 << 20
_ANSWER_LIMIT = 64 << 10
_REDIRECTS = 5
_ATTEMPTS = 5
"""Transfers of one blob in a row that bring nothing before we give up."""
_NETWORK_ERRORS = (aiohttp.ClientError, ssl.SSLError, OSError, TimeoutError)


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
        self._session = aiohttp.ClientSession(
            auto_decompress=False,
            read_bufsize=_BUFFER,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=settings.connect_seconds),
            connector=aiohttp.TCPConnector(limit=0, limit_per_host=settings.parallel + 4),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": "cri-bridge", "Accept-Encoding": "identity"},
            trust_env=False,  # it would also read ~/.netrc; proxies are passed with each request
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    def repository(self, reference: Reference, who: Credentials) -> Repository:
        """The repository of ``reference`` for one pull."""
        places = endpoints.of(reference.domain, who, self._settings, self._plain)
        return Repository(self._session, reference, places, self._settings, self._plain)


class Repository:
    """One repository as one pull sees it; keeps the tokens it was given."""

    def __init__(
        self, session: aiohttp.ClientSession, reference: Reference, places: list[Endpoint], settings: ImageSettings, plain: set[str]
    ) -> None:
        self._session = session
        self._path = reference.path
        self._name = reference.repository
        self._endpoints = places
        self._settings = settings
        self._plain = plain

    async def manifest(self, target: str) -> Fetched:
        """The manifest of a tag or digest. Raises ImagePullFailed, RegistryUnavailable, CorruptData."""

        async def attempt(endpoint: Endpoint) -> Fetched:
            async with self._get(endpoint, f"manifests/{target}", {"Accept": ACCEPT}) as response:
                data = await self._body(endpoint, response, self._settings.limits.manifest_bytes)
                algorithm = target.partition(":")[0] if ":" in target else "sha256"
                digest = f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"
                if ":" in target and digest != target:
                    raise CorruptData(f"{endpoint} sent a manifest with the digest {digest} for {self._name}@{target}")
                return Fetched(data, response.headers.get("Content-Type", ""), digest)

        return await self._first(attempt)

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
                await anyio.sleep(min(5.0, 0.1 * 2 ** len(failures)))

    async def _transfer(self, endpoint: Endpoint, wanted: Descriptor, done: int) -> AsyncGenerator[bytes]:
        headers = {"Range": f"bytes={done}-"} if done else {}
        async with self._get(endpoint, f"blobs/{wanted.digest}", headers) as response:
            skip = done if response.status == 200 else 0
            left = wanted.size - done
            pace = Pace(self._settings.idle_seconds, self._settings.floor_bytes, self._settings.floor_seconds)
            while True:
                chunk = await _network(endpoint, lambda: pace.wait(response.content.readany))
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

    async def _first(self, attempt: Callable[[Endpoint], Awaitable[T]]) -> T:
        """The first endpoint's answer that is one. The registry itself is asked last and has the last word."""
        failures: list[tuple[Endpoint, BridgeError]] = []
        for endpoint in self._endpoints:
            if any(other.host == endpoint.host and not isinstance(exc, RegistryUnavailable) for other, exc in failures):
                continue  # it answered over TLS already
            try:
                return await attempt(endpoint)
            except (ImagePullFailed, RegistryUnavailable, CorruptData) as exc:
                _logger.debug("%s: %s", endpoint, exc)
                failures.append((endpoint, exc))
        for place, earlier in failures[:-1]:
            _logger.warning("%s: before the registry itself failed, %s had: %s", self._name, place, earlier)
        raise failures[-1][1]

    @asynccontextmanager
    async def _get(self, endpoint: Endpoint, path: str, headers: dict[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        """GET ``path`` below the repository; a 401 is answered with a token or basic credentials, once."""
        url = f"{endpoint.base}/v2/{self._path}/{path}"
        challenged = False
        while True:
            sent = {**headers, **({"Authorization": endpoint.authorization} if endpoint.authorization else {})}
            response = await self._request("GET", url, endpoint, headers=sent)
            async with response:
                if response.status == 401 and not challenged:
                    challenged = True
                    if await self._answer(endpoint, response.headers.getall("WWW-Authenticate", [])):
                        continue
                if response.status not in (200, 206):
                    raise await self._refusal(endpoint, response, path)
                if endpoint.base.startswith("http://"):
                    self._plain.add(endpoint.host)
                yield response
                return

    async def _request(self, method: str, url: str, endpoint: Endpoint, **arguments: object) -> aiohttp.ClientResponse:
        async def send() -> aiohttp.ClientResponse:
            with anyio.fail_after(self._settings.idle_seconds):
                return await self._session.request(
                    method,
                    url,
                    ssl=not endpoint.insecure,
                    proxy=endpoints.proxy_of(url),
                    max_redirects=_REDIRECTS,
                    **arguments,  # type: ignore[arg-type]
                )

        return await _network(endpoint, send)

    async def _answer(self, endpoint: Endpoint, headers: list[str]) -> bool:
        """Get what a 401 asks for into ``endpoint.authorization``; False when we have nothing to offer."""
        challenges = [challenge for header in headers for challenge in authentication.parse_challenges(header)]
        who = endpoint.credentials
        for challenge in sorted(challenges, key=lambda c: c.scheme != "bearer"):
            if challenge.scheme == "bearer":
                endpoint.authorization = f"Bearer {who.registry_token or await self._token(endpoint, challenge)}"
                return True
            if who.username:
                endpoint.authorization = who.basic()
                return True
        return False

    async def _token(self, endpoint: Endpoint, challenge: authentication.Challenge) -> str:
        allow_http = endpoint.insecure or endpoint.base.startswith("http://")
        wanted = authentication.token_request(challenge, endpoint.credentials, f"repository:{self._path}:pull", allow_http=allow_http)
        headers = {"Authorization": wanted.authorization} if wanted.authorization else {}
        arguments = {"data": wanted.form} if wanted.form is not None else {"params": wanted.query}
        method = "POST" if wanted.form is not None else "GET"
        response = await self._request(method, wanted.url, endpoint, headers=headers, **arguments)
        async with response:
            if response.status != 200:
                raise await self._refusal(endpoint, response, "token")
            return authentication.parse_token(await self._body(endpoint, response, _ANSWER_LIMIT))

    async def _body(self, endpoint: Endpoint, response: aiohttp.ClientResponse, limit: int) -> bytes:
        data = b""
        pace = Pace(self._settings.idle_seconds, self._settings.floor_bytes, self._settings.floor_seconds)
        while chunk := await _network(endpoint, lambda: pace.wait(response.content.readany)):
            data += chunk
            if len(data) > limit:
                raise CorruptData(f"{endpoint} sent more than {limit} bytes where a short document was due")
        return data

    async def _refusal(self, endpoint: Endpoint, response: aiohttp.ClientResponse, path: str) -> BridgeError:
        try:
            said = _words(await self._body(endpoint, response, _ANSWER_LIMIT))
        except BridgeError:
            said = ""
        message = f"{endpoint} answered {response.status} for {self._name} {path}: {said or response.reason or 'it said nothing'}"
        if response.status >= 500 or response.status in (408, 429):
            return RegistryUnavailable(message)
        return ImagePullFailed(message)


def _words(body: bytes) -> str:
    """What a registry says in an error answer (distribution-spec "Error Codes"), on one line."""
    try:
        errors = json.loads(body)["errors"]
        return "; ".join(f"{error.get('code', '')}: {error.get('message', '')}".strip(": ") for error in errors)[:500]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return " ".join(body[:200].decode("utf-8", "replace").split()) if body.isascii() and b"<" not in body[:20] else ""


async def _network(endpoint: Endpoint, call: Callable[[], Awaitable[T]]) -> T:
    """Await ``call``; whatever the network does to it is RegistryUnavailable."""
    try:
        return await call()
    except aiohttp.TooManyRedirects as exc:
        raise ImagePullFailed(f"{endpoint} redirects for ever") from exc
    except _NETWORK_ERRORS as exc:
        raise RegistryUnavailable(f"{endpoint} can't be used: {endpoints.plain_words(exc)}") from exc
