"""Stored credentials: ``auth.json`` (containers-auth.json(5)) and Docker's ``config.json``, with credential helpers.

A request's own AuthConfig comes first; these are asked for hosts that it says nothing of, mirrors included. Keys may be a
host, a host with a path (the longest wins), or Docker Hub's old address. A helper is a program ``docker-credential-NAME``
that gets the host on stdin and answers with JSON; it has a deadline, and its output never reaches a log.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anyio.to_thread import run_sync

from bridge import log
from bridge.errors import BridgeError, ConfigError
from bridge.host import process
from bridge.images.auth import Credentials
from bridge.images.places import DOCKER_HUB
from bridge.images.reference import DEFAULT_DOMAIN

_logger = log.get("images.auth")
_HUB_KEYS = ("https://index.docker.io/v1/", "index.docker.io", DOCKER_HUB, DEFAULT_DOMAIN)
_HUB_HELPER_KEY = _HUB_KEYS[0]
_TOKEN_USER = "<token>"  # noqa: S105 - the helpers' mark for an identity token in place of a password
_NOT_FOUND = b"credentials not found"
_FILE_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class AuthFile:
    """One file, parsed. ``auths`` by normalised key; ``helpers`` by host; ``store`` is the helper for everything else."""

    auths: Mapping[str, Credentials] = field(default_factory=dict, repr=False)
    helpers: Mapping[str, str] = field(default_factory=dict)
    store: str = ""


def parse(text: str, where: str) -> AuthFile:
    """The file's content. Raises ConfigError naming file and key, never a secret."""
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"{where}: is not JSON") from exc
    if not isinstance(table, dict):
        raise ConfigError(f"{where}: must hold a JSON object")
    auths, helpers, store = table.get("auths") or {}, table.get("credHelpers") or {}, table.get("credsStore") or ""
    if not isinstance(auths, dict) or not isinstance(helpers, dict) or not isinstance(store, str):
        raise ConfigError(f"{where}: auths and credHelpers must be objects, credsStore a string")
    found = {_key(name): _credentials(entry, f"{where}: auths[{name!r}]") for name, entry in auths.items()}
    for name, helper in [*helpers.items(), ("credsStore", store)]:
        if not isinstance(helper, str) or "/" in helper:
            raise ConfigError(f"{where}: the helper of {name!r} must be a plain name, without docker-credential-")
    return AuthFile({key: who for key, who in found.items() if who}, {_key(name): helper for name, helper in helpers.items()}, store)


def _key(name: str) -> str:
    if name in _HUB_KEYS:
        return DEFAULT_DOMAIN
    plain = name.removeprefix("https://").removeprefix("http://").rstrip("/")
    for version in ("/v1", "/v2"):
        plain = plain.removesuffix(version)
    return plain


def _credentials(entry: Any, where: str) -> Credentials:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: must be an object")
    texts = {name: entry.get(name) or "" for name in ("auth", "username", "password", "identitytoken", "registrytoken")}
    if not all(isinstance(value, str) for value in texts.values()):
        raise ConfigError(f"{where}: its values must be strings")
    user, password = texts["username"], texts["password"]
    if texts["auth"]:
        try:
            user, colon, password = base64.b64decode(texts["auth"], validate=True).decode().strip("\0").partition(":")
        except (binascii.Error, UnicodeDecodeError) as exc:
            raise ConfigError(f"{where}: auth is not base64 of user:password") from exc
        if not colon:
            raise ConfigError(f"{where}: auth is not base64 of user:password")
    return Credentials(user, password, texts["identitytoken"], texts["registrytoken"])


def stored(file: AuthFile, host: str, name: str) -> Credentials:
    """What the file itself holds for the repository ``host``/``name``: the longest key wins. Empty when nothing."""
    domain = DEFAULT_DOMAIN if host == DOCKER_HUB else host
    parts = f"{domain}/{name}".split("/")
    for length in range(len(parts), 0, -1):
        if who := file.auths.get("/".join(parts[:length])):
            return who
    return Credentials()


def helper_of(file: AuthFile, host: str) -> str:
    """The credential helper that the file names for ``host``, "" for none."""
    return file.helpers.get(DEFAULT_DOMAIN if host == DOCKER_HUB else host, file.store)


@dataclass(frozen=True, slots=True)
class AuthFiles:
    """The configured files, asked in order, read anew each time: ``podman login`` holds at once. ``timeout`` of a helper in seconds."""

    files: Sequence[Path] = ()
    timeout: float = 10.0

    async def credentials(self, host: str, name: str) -> Credentials:
        """For the repository ``host``/``name``; empty when no file knows it. A broken file or helper is logged and passed over."""
        for path in self.files:
            try:
                file = await run_sync(_read, path)
                if file is None:
                    continue
                helper = helper_of(file, host)
                who = stored(file, host, name) or (await self._ask(helper, host) if helper else Credentials())
            except BridgeError as exc:
                _logger.warning("credentials for %s: %s", host, exc)
                continue
            if who:
                return who
        return Credentials()

    async def _ask(self, helper: str, host: str) -> Credentials:
        program = f"docker-credential-{helper}"
        question = _HUB_HELPER_KEY if host in (DOCKER_HUB, DEFAULT_DOMAIN) else host
        done = await process.run([program, "get"], input=question.encode(), timeout=self.timeout)
        if done.returncode:
            if _NOT_FOUND in done.stdout + done.stderr:
                return Credentials()
            raise ConfigError(f"{program} failed with exit code {done.returncode}")
        return answer(done.stdout, program)


def answer(output: bytes, program: str) -> Credentials:
    """A helper's answer (docker-credential-helpers: ``Username``, ``Secret``). Raises ConfigError."""
    try:
        table = json.loads(output)
        user, secret = table["Username"], table["Secret"]
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise ConfigError(f"{program} answered something that is no credential") from exc
    if not isinstance(user, str) or not isinstance(secret, str):
        raise ConfigError(f"{program} answered something that is no credential")
    return Credentials(identity_token=secret) if user == _TOKEN_USER else Credentials(user, secret)


def _read(path: Path) -> AuthFile | None:
    try:
        with path.open("rb") as source:
            data = source.read(_FILE_LIMIT + 1)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}") from exc
    if len(data) > _FILE_LIMIT:
        raise ConfigError(f"{path}: is larger than {_FILE_LIMIT} bytes")
    return parse(data.decode("utf-8", "replace"), str(path))
