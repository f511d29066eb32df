"""Authentication against registries: challenges, credentials, token requests. Pure; secrets never enter a message.

Sources: RFC 9110 §11 (challenges), the distribution project's token specification (bearer, OAuth2).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from bridge.errors import ImagePullFailed, InvalidRequest
from bridge.ports.images import RegistryAuth

_PARAMETER = re.compile(r'([A-Za-z][\w-]*)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,]+))')
_SCHEME = re.compile(r"(?:^|,)\s*(Bearer|Basic)(?=\s|,|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge of a 401 answer: scheme in lower case and its parameters."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(header: str) -> list[Challenge]:
    """The Bearer and Basic challenges in a WWW-Authenticate header; other schemes are left out."""
    starts = list(_SCHEME.finditer(header))
    ends = [match.start() for match in starts[1:]] + [len(header)]
    found = []
    for start, end in zip(starts, ends, strict=False):  # no challenge at all leaves one end over
        pairs = _PARAMETER.findall(header[start.end() : end])
        values = {name.lower(): re.sub(r"\\(.)", r"\1", quoted) or bare for name, quoted, bare in pairs}
        found.append(Challenge(start[1].lower(), values))
    return found


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a request may prove itself with; empty fields are unknown."""

    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)

    def __bool__(self) -> bool:
        return bool(self.username or self.password or self.identity_token or self.registry_token)

    def basic(self) -> str:
        """The value of a basic Authorization header."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


def credentials(auth: RegistryAuth | None) -> Credentials:
    """The credentials in a CRI AuthConfig. Raises InvalidRequest when its ``auth`` is not base64 of ``user:password``."""
    if auth is None:
        return Credentials()
    username, password = auth.username, auth.password
    if auth.auth and not username:
        try:
            username, colon, password = base64.b64decode(auth.auth, validate=True).decode().strip("\0").partition(":")
        except (binascii.Error, UnicodeDecodeError) as exc:
            raise InvalidRequest("it is not base64 of user:password", field="auth.auth") from exc
        if not colon:
            raise InvalidRequest("it is not base64 of user:password", field="auth.auth")
    return Credentials(username, password, auth.identity_token, auth.registry_token)


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """How to ask for a bearer token: a GET with ``query``, or a POST with ``form`` when that is given."""

    url: str
    query: Mapping[str, str]
    form: Mapping[str, str] | None = field(default=None, repr=False)
    authorization: str = field(default="", repr=False)


def token_request(challenge: Challenge, who: Credentials, scope: str, *, allow_http: bool) -> TokenRequest:
    """The token request that answers a Bearer ``challenge``. Raises ImagePullFailed for a realm that is no safe URL."""
    realm = challenge.parameters.get("realm", "")
    if not realm.startswith(("https://", "http://") if allow_http else "https://"):
        raise ImagePullFailed(f"the registry names {realm.partition('?')[0]!r} as its token server, which is not https")
    query = {"service": challenge.parameters.get("service", ""), "scope": challenge.parameters.get("scope") or scope}
    query = {key: value for key, value in query.items() if value}
    if who.identity_token:
        form = {"grant_type": "refresh_token", "refresh_token": who.identity_token, "client_id": "cri-bridge", **query}
        return TokenRequest(realm, {}, form)
    if who.username:
        return TokenRequest(realm, {**query, "account": who.username}, authorization=who.basic())
    return TokenRequest(realm, query)


def parse_token(body: bytes) -> str:
    """The token in a token server's answer. Raises ImagePullFailed."""
    try:
        document = json.loads(body)
        token = document.get("token") or document.get("access_token")
    except (ValueError, AttributeError, RecursionError):
        token = None
    if not isinstance(token, str) or not token or "\n" in token or "\r" in token:
        raise ImagePullFailed("the token server's answer holds no token")
    return token
