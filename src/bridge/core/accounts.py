"""A container's identity, and passwd and group entries for one that its image doesn't know.

Programs ask the C library who they are; ssh, git, Java and many more fail when nobody answers. A kubelet may choose any
number as uid, so a number without an entry gets one: the image's file with one line added, put over the image's. As CRI-O
does it. The image's own file is left alone where it is absent, empty or no plain file, where a volume covers it, and where
the container may write it itself: such images bring a script that adds the line.
Sources: CRI v1 LinuxContainerSecurityContext run_as_*, passwd(5), group(5).
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyio.to_thread import run_sync

from bridge.core import spec_process, users
from bridge.core.entities import User
from bridge.core.model import ContainerConfig
from bridge.host import files, rootfs
from bridge.host.rootfs import AccountFile
from bridge.host.selinux import label_all
from bridge.ports.images import ImageConfig

_LINE_BREAKERS = frozenset(":\n\r\0")


@dataclass(frozen=True, slots=True)
class Identity:
    """``home`` is what HOME defaults to; ``mounts`` are OCI mounts of generated files."""

    user: User
    home: str
    mounts: tuple[Mapping[str, Any], ...] = ()


async def identify(config: ContainerConfig, image: ImageConfig, root: Path, bundle: Path, label: str = "") -> Identity:
    """Who the container runs as, from the request, the image's user and the image's files at ``root``.

    Generated files lie in the bundle, with the SELinux ``label`` if one is given, and go with it. Raises InvalidRequest naming
    the field, LimitExceeded, HostError.
    """
    passwd, group = await rootfs.read_accounts(root)
    user, home = users.resolve(config.security, image.user, passwd, group)
    generated = {}
    if passwd and not users.knows_uid(user.uid, passwd):
        new_home = home_of(config, image)
        generated["passwd"] = with_line(passwd, f"{user.uid}:x:{user.uid}:{user.gid}:{user.uid} user:{new_home}:/sbin/nologin")
    if group and not users.knows_gid(user.gid, group):
        generated["group"] = with_line(group, f"{user.gid}:x:{user.gid}:")
    mounts = []
    for name, content in generated.items():
        there = None if covered(config, name) else await rootfs.look_at_account_file(root, f"/etc/{name}")
        if there is not None and not _may_write(there, user):
            await _write(bundle / "etc" / name, content, there, label)
            mounts.append(_mount(name, bundle, read_only=config.security.readonly_rootfs))
            home = new_home if name == "passwd" else home
    return Identity(user, home, tuple(mounts))


def with_line(content: bytes, line: str) -> bytes:
    """``content`` with ``line`` as its last; a last line that wasn't ended stays a line of its own."""
    gap = b"" if content.endswith(b"\n") else b"\n"
    return content + gap + line.encode(errors="replace") + b"\n"


def covered(config: ContainerConfig, name: str) -> bool:
    """Whether a volume lies on /etc or on the file itself."""
    places = {posixpath.normpath("/" + mount.container_path.lstrip("/")) for mount in config.mounts}
    return bool(places & {"/etc", f"/etc/{name}"})


def home_of(config: ContainerConfig, image: ImageConfig) -> str:
    """HOME where request or image set it, else the working directory; what can't stand in a line of passwd counts as unset."""
    given = [value for key, value in spec_process.pairs(image.env) if key == "HOME"]
    given += [value for key, value in config.envs if key == "HOME"]
    candidates = [*given[-1:], spec_process.working_dir(config, image)]
    return next((path for path in candidates if path.startswith("/") and not _LINE_BREAKERS & set(path)), "/")


async def _write(path: Path, content: bytes, like: AccountFile, label: str) -> None:
    await files.write_owned(path, content, mode=like.mode, uid=like.uid, gid=like.gid)
    if label:
        await run_sync(label_all, [path], label)


def _mount(name: str, bundle: Path, *, read_only: bool) -> Mapping[str, Any]:
    options = ["bind", "rprivate", "nosuid", "nodev", "noexec", "ro" if read_only else "rw"]
    return {"destination": f"/etc/{name}", "type": "bind", "source": str(bundle / "etc" / name), "options": options}


def _may_write(file: AccountFile, user: User) -> bool:
    return bool(file.mode & 0o022) or (file.uid == user.uid and bool(file.mode & 0o200))
