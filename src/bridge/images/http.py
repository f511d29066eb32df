"""One GET against a registry: authentication, redirects, TLS, and what a refusal means. What is asked for is registry.py's.

Errors: what can't be reached is RegistryUnavailable, 429 and 5xx are Busy (one of it), a clear no is ImagePullFailed with the
registry's own words. Credentials go to the endpoint that they are for, never along a redirect, never into a message.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
import anyio
from anyio.to_thread import run_sync
from yarl import URL

from bridge.errors import BridgeError, CorruptData, ImagePullFailed, RegistryUnavailable
from bridge.images import auth as authentication
from bridge.images import endpoints, tls
from bridge.images.auth_files import AuthFiles
from bridge.images.endpoints import Endpoint
from bridge.images.places import TlsFiles
from bridge.images.settings import ImageSettings
from bridge.images.transfer import Absent, Busy, Pace, Untrusted, retry_after

T = TypeVar("T")
_ANSWER_LIMIT = 64 << 10
_REDIRECTS = 5
_REDIRECT = frozenset((301, 302, 303, 307, 308))
_HARMLESS = frozenset(("Accept", "Range"))
"""Headers that a redirect takes along to another origin."""
IF_NONE_MATCH, NOT_MODIFIED = "If-None-Match", 304
"""The condition under which a registry need not send what is known already, and its answer then (RFC 9110 §13.1.2)."""
_NETWORK_ERRORS = (aiohttp.ClientError, ssl.SSLError, OSError, TimeoutError)


@dataclass(frozen=True, slots=True)
class Exchange:
    """The requests of all pulls share it. ``plain`` collects the hosts that turned out to speak only http."""

    session: aiohttp.ClientSession
    settings: ImageSettings
    auth_files: AuthFiles
    plain: set[str]

    @asynccontextmanager
    async def get(self, endpoint: Endpoint, path: str, headers: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        """GET ``path`` below the repository; a 401 is answered with a token or basic credentials, once.

        The answer is 200, 206 or, where ``headers`` have a condition, 304.
        """
        query = {"ns": endpoint.place.namespace} if endpoint.place.namespace else {}
        challenged = False
        while True:
            sent = {**endpoint.place.headers, **headers}
            if endpoint.authorization:
                sent["Authorization"] = endpoint.authorization
            response = await self._request("GET", endpoint.url(path), endpoint, headers=sent, params=query)
            endpoint.answered = True
            async with response:
                if response.status == 401 and not challenged:
                    challenged = True
                    if await self._answer(endpoint, response.headers.getall("WWW-Authenticate", [])):
                        continue
                if response.status not in (200, 206) and not (response.status == NOT_MODIFIED and IF_NONE_MATCH in headers):
                    raise await self._refusal(endpoint, response, path)
                if endpoint.plain:
                    self.plain.add(endpoint.host)
                yield response
                return

    async def _request(self, method: str, url: str, endpoint: Endpoint, **arguments: Any) -> aiohttp.ClientResponse:
        """Follow redirects ourselves: another origin gets no credentials, no headers of the configuration and no client certificate.

        A body (which only a token request has) goes nowhere but to its URL.
        """
        response = await self._send(method, url, endpoint, at_home=True, **arguments)
        for _ in range(_REDIRECTS):
            if response.status not in _REDIRECT or "Location" not in response.headers or method != "GET":
                return response
            response.release()
            target = _target(response, endpoint)
            at_home = target.origin() == response.url.origin() and response.url.host == URL(url).host
            sent = arguments.get("headers", {}) if at_home else {k: v for k, v in arguments.get("headers", {}).items() if k in _HARMLESS}
            response = await self._send(method, target, endpoint, at_home=at_home, headers=sent)
        response.close()
        raise ImagePullFailed(f"{endpoint} redirects for ever")

    async def _send(self, method: str, url: str | URL, endpoint: Endpoint, *, at_home: bool, **arguments: Any) -> aiohttp.ClientResponse:
        place = endpoint.place
        verify: ssl.SSLContext | bool = not (place.insecure or endpoint.plain)
        if place.tls:
            files = place.tls if at_home else TlsFiles(place.tls.authorities)
            verify = await run_sync(lambda: tls.context(files, insecure=place.insecure))

        async def send() -> aiohttp.ClientResponse:
            with anyio.fail_after(self.settings.idle_seconds):
                proxy = endpoints.proxy_of(str(url))
                return await self.session.request(method, url, ssl=verify, proxy=proxy, allow_redirects=False, **arguments)

        return await on_network(endpoint, send)

    async def _answer(self, endpoint: Endpoint, headers: list[str]) -> bool:
        """Get what a 401 asks for into ``endpoint.authorization``; False when we have nothing to offer."""
        if not endpoint.credentials and not endpoint.looked_up:
            endpoint.looked_up = True
            endpoint.credentials = await self.auth_files.credentials(endpoint.host, endpoint.place.name)
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
        allow_http = endpoint.place.insecure or endpoint.plain
        scope = f"repository:{endpoint.place.name}:pull"
        wanted = authentication.token_request(challenge, endpoint.credentials, scope, allow_http=allow_http)
        headers = {"Authorization": wanted.authorization} if wanted.authorization else {}
        arguments = {"data": wanted.form} if wanted.form is not None else {"params": wanted.query}
        method = "POST" if wanted.form is not None else "GET"
        response = await self._request(method, wanted.url, endpoint, headers=headers, **arguments)
        async with response:
            if response.status != 200:
                raise await self._refusal(endpoint, response, "token")
            return authentication.parse_token(await self.body(endpoint, response, _ANSWER_LIMIT))

    async def body(self, endpoint: Endpoint, response: aiohttp.ClientResponse, limit: int) -> bytes:
        """A short document. Raises CorruptData when it passes ``limit`` bytes."""
        data = b""
        pace = Pace(self.settings.idle_seconds, self.settings.floor_bytes, self.settings.floor_seconds)
        while chunk := await on_network(endpoint, lambda: pace.wait(response.content.readany)):
            data += chunk
            if len(data) > limit:
                raise CorruptData(f"{endpoint} sent more than {limit} bytes where a short document was due")
        return data

    async def _refusal(self, endpoint: Endpoint, response: aiohttp.ClientResponse, path: str) -> BridgeError:
        try:
            said = _words(await self.body(endpoint, response, _ANSWER_LIMIT))
        except BridgeError:
            said = ""
        what = f"{endpoint.place.name} {path}"
        message = f"{endpoint} answered {response.status} for {what}: {said or response.reason or 'it said nothing'}"
        if response.status >= 500 or response.status in (408, 429):
            return Busy(message, retry_after(response.headers.get("Retry-After")))
        return (Absent if response.status == 404 else ImagePullFailed)(message)


def _words(body: bytes) -> str:
    """What a registry says in an error answer (distribution-spec "Error Codes"), on one line."""
    try:
        errors = json.loads(body)["errors"]
        return "; ".join(f"{error.get('code', '')}: {error.get('message', '')}".strip(": ") for error in errors)[:500]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return " ".join(body[:200].decode("utf-8", "replace").split()) if body.isascii() and b"<" not in body[:20] else ""


def _target(response: aiohttp.ClientResponse, endpoint: Endpoint) -> URL:
    """Where a redirect leads. Raises ImagePullFailed for something that is no web address, or for one that gives up TLS."""
    try:
        target = response.url.join(URL(response.headers["Location"], encoded=True))
        target.origin()
    except ValueError as exc:
        raise ImagePullFailed(f"{endpoint} redirects to something that is no URL") from exc
    if target.scheme not in ("http", "https"):
        raise ImagePullFailed(f"{endpoint} redirects to a {target.scheme} URL")
    if target.scheme == "http" and response.url.scheme == "https" and not endpoint.place.insecure:
        raise ImagePullFailed(f"{endpoint} redirects from https to http://{target.host}")
    return target


async def on_network(endpoint: Endpoint, call: Callable[[], Awaitable[T]]) -> T:
    """Await ``call``; whatever the network does to it is RegistryUnavailable."""
    try:
        return await call()
    except aiohttp.ClientConnectorCertificateError as exc:
        raise Untrusted(f"{endpoint} shows a certificate that is not trusted: {exc.certificate_error}") from exc
    except _NETWORK_ERRORS as exc:
        raise RegistryUnavailable(f"{endpoint} can't be used: {endpoints.plain_words(exc)}") from exc
