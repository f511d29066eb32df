"""Finding the profiles that a request names: seccomp files below the configured root, AppArmor profiles in the kernel.

All looking and loading is done here, so that building the spec stays a pure function. Sources: CRI v1 SecurityProfile.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import anyio
from anyio.to_thread import run_sync

from bridge import log
from bridge.core import apparmor
from bridge.core.model import ContainerSecurity, ProfileType, SandboxSecurity, SecurityProfile
from bridge.core.spec_inputs import Confinement, SpecSettings
from bridge.errors import BridgeError, HostError, InvalidRequest, Unsupported
from bridge.host import apparmor as host_apparmor
from bridge.host import rootfs
from bridge.host.facts import HostFacts
from bridge.ports.runtime import Ability, RuntimeFeatures

_logger = log.get("core.confinement")
_CONTEXT = "config.linux.security_context"
_MAX_PROFILE = 4 << 20


def check_profiles(security: SandboxSecurity | ContainerSecurity, features: RuntimeFeatures) -> None:
    """Refuse a profile of the node's that the handler would not enforce; none counts for who is privileged. Raises Unsupported."""
    if security.privileged:
        return
    for name, profile, ability in (("seccomp", security.seccomp, Ability.SECCOMP), ("apparmor", security.apparmor, Ability.APPARMOR)):
        why = features.lacks(ability)
        if profile is not None and profile.profile_type is ProfileType.LOCALHOST and why is not None:
            asked = profile.localhost_ref.removeprefix("localhost/")
            raise Unsupported(f"{_CONTEXT}.{name}: profile {asked!r} can't be enforced by this handler ({why})")


class Confiner:
    """Answers for containers and for pods' own processes alike; keeps only what it has said in the log."""

    def __init__(self, facts: HostFacts, settings: SpecSettings) -> None:
        self._facts = facts
        self._settings = settings
        self._loading = anyio.Lock()
        self._warned = False

    async def find(self, seccomp: SecurityProfile | None, apparmor: SecurityProfile | None, *, privileged: bool) -> Confinement:
        """What the two profiles of a security context come to here; nothing of them counts for who is privileged.

        Raises InvalidRequest, Unsupported, HostError naming the field.
        """
        if privileged:
            return Confinement()
        return Confinement(await self._seccomp(seccomp), await self._apparmor(apparmor))

    async def _seccomp(self, request: SecurityProfile | None) -> Mapping[str, Any] | None:
        if request is None or request.profile_type is not ProfileType.LOCALHOST:
            return None
        return await run_sync(_read_profile, self._settings.seccomp_profile_root, request.localhost_ref)

    async def _apparmor(self, request: SecurityProfile | None) -> str:
        local = request is not None and request.profile_type is ProfileType.LOCALHOST
        name = apparmor.wanted(request, self._settings.apparmor_profile)
        if not self._facts.apparmor:
            if local:
                raise Unsupported(f"{_CONTEXT}.apparmor: profile {name!r} was asked for, but this host has no AppArmor")
            return ""
        if name in ("", apparmor.UNCONFINED) and not local:
            return name
        if name in await host_apparmor.loaded(self._settings.apparmor_root):
            return name
        if local:
            raise InvalidRequest(f"profile {name!r} is not loaded on this node", field=f"{_CONTEXT}.apparmor.localhost_ref")
        return await self._load_default(name, explicit=request is not None)

    async def _load_default(self, name: str, *, explicit: bool) -> str:
        """Load our own profile. A container that did not ask for any runs without it where it can't be loaded, as ever."""
        root = self._settings.apparmor_root
        try:
            if name != apparmor.DEFAULT_PROFILE:
                raise HostError(f"security.apparmor_profile: {name!r} is not loaded on this node")
            async with self._loading:
                if name not in await host_apparmor.loaded(root):
                    await host_apparmor.load(await run_sync(_default_text, name, root), root)
                    _logger.info("AppArmor profile %s loaded", name)
        except BridgeError as exc:
            if explicit:
                raise Unsupported(f"{_CONTEXT}.apparmor: the default profile can't be used: {exc.message}") from exc
            if not self._warned:
                _logger.warning("containers run without an AppArmor profile: %s", exc)
                self._warned = True
            return ""
        return name


def _default_text(name: str, root: Path) -> str:
    def has(path: str) -> bool:
        return host_apparmor.has_policy_file(path, root)

    own = host_apparmor.own_label(root)
    return apparmor.default_text(name, (own,), abi=has("abi/3.0"), tunables=has("tunables/global"), base=has("abstractions/base"))


def _read_profile(root: Path, reference: str) -> Mapping[str, Any]:
    """A seccomp profile by its name below ``root`` or by its whole path there, as a kubelet sends it. Blocking."""
    field = f"{_CONTEXT}.seccomp.localhost_ref"
    name = _below(root, reference, field)
    try:
        text = rootfs.read_beneath(root, name, _MAX_PROFILE)
    except BridgeError as exc:
        raise InvalidRequest(exc.message, field=field) from exc
    if text is None:
        raise InvalidRequest(f"{reference!r} does not exist below {root}", field=field)
    try:
        profile = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise InvalidRequest(f"{reference} is not JSON: {exc}", field=field) from exc
    if not isinstance(profile, dict):
        raise InvalidRequest(f"{reference} must hold a JSON object", field=field)
    return profile


def _below(root: Path, reference: str, field: str) -> str:
    path = PurePosixPath(reference)
    if "\0" in reference or ".." in path.parts:
        raise InvalidRequest(f"{reference!r} must not hold '..' or a NUL byte", field=field)
    if not path.is_absolute():
        return str(path)
    for top in dict.fromkeys((root, root.resolve())):  # the kubelet's directory may be a link, and either name be used
        if path.is_relative_to(top):
            return str(path.relative_to(top))
    raise InvalidRequest(f"{reference} is not below {root} (security.seccomp_profile_root)", field=field)
