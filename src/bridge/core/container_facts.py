"""What a container's spec needs to know of the host: its identity, a local seccomp profile.

All looking is done here, so that building the spec stays a pure function.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridge.core import users
from bridge.core.entities import User
from bridge.core.model import ContainerConfig, ProfileType, SecurityProfile
from bridge.errors import InvalidRequest
from bridge.host import files, rootfs
from bridge.ports.images import Image


async def identity(config: ContainerConfig, image: Image, root: Path) -> tuple[User, str]:
    """User and home from the request, the image's user and the image's own passwd and group files."""
    passwd, group = await rootfs.read_accounts(root)
    return users.resolve(config.security, image.config.user, passwd, group)


async def local_seccomp(config: ContainerConfig) -> Mapping[str, Any] | None:
    """The profile that a Localhost request names by absolute path, parsed. Raises InvalidRequest."""
    wanted: SecurityProfile | None = config.security.seccomp
    if wanted is None or wanted.profile_type is not ProfileType.LOCALHOST or config.security.privileged:
        return None
    field = "config.linux.security_context.seccomp.localhost_ref"
    if not wanted.localhost_ref.startswith("/"):
        raise InvalidRequest(f"{wanted.localhost_ref!r} must be an absolute path", field=field)
    text = await files.read_text(Path(wanted.localhost_ref), limit=4 << 20)
    if not text:
        raise InvalidRequest(f"{wanted.localhost_ref} does not exist or is empty", field=field)
    try:
        profile = json.loads(text)
    except ValueError as exc:
        raise InvalidRequest(f"{wanted.localhost_ref} is not JSON: {exc}", field=field) from exc
    if not isinstance(profile, dict):
        raise InvalidRequest(f"{wanted.localhost_ref} must hold a JSON object", field=field)
    return profile
