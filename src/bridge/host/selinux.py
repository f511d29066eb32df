"""SELinux of this host: its mode, the policy's contexts for containers, whether the kernel knows a context, labels of files.

Everything is read below a ``root`` directory, so that recorded trees can stand in for a host. All functions block.
Sources: selinux(8), selinux_config(5), the lxc_contexts file of container-selinux, Documentation of /sys/fs/selinux.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from bridge.errors import HostError

ATTRIBUTE = "security.selinux"
"""The extended attribute that holds a file's label."""
_FILESYSTEM = "sys/fs/selinux"
_CONFIG = "etc/selinux/config"
_SHIPPED = "usr/share/containers/selinux/contexts"
_DEFAULT_POLICY = "targeted"
# Types of container policies of old and of today, for policies without a contexts file; the first that the kernel knows is used.
_FALLBACK = (
    ("system_u:system_r:container_t:s0", "system_u:object_r:container_file_t:s0", "system_u:object_r:container_ro_file_t:s0"),
    ("system_u:system_r:svirt_lxc_net_t:s0", "system_u:object_r:svirt_sandbox_file_t:s0", "system_u:object_r:svirt_sandbox_file_t:s0"),
)
_UNLABELLED = {errno.ENODATA, errno.ENOTSUP, errno.EOPNOTSUPP}


class Mode(StrEnum):
    """What SELinux does on this host."""

    DISABLED = "disabled"
    PERMISSIVE = "permissive"
    ENFORCING = "enforcing"


@dataclass(frozen=True, slots=True)
class Contexts:
    """What the policy gives containers: of a process, of files that they may write, and of files that all of them may read.

    ``root`` is where the host's files are found. ``policy`` is the policy's name, for people.
    """

    process: str
    file: str
    shared_file: str
    policy: str = ""
    root: Path = Path("/")


def mode(root: Path = Path("/")) -> Mode:
    """From the SELinux file system; absent means disabled."""
    text = _read(root / _FILESYSTEM / "enforce").strip()
    if not text:
        return Mode.DISABLED
    return Mode.ENFORCING if text == "1" else Mode.PERMISSIVE


def contexts(root: Path = Path("/")) -> Contexts | None:
    """The policy's contexts for containers, None where SELinux is disabled or its policy has none that the kernel knows."""
    if mode(root) is Mode.DISABLED:
        return None
    policy = _settings(_read(root / _CONFIG)).get("SELINUXTYPE", _DEFAULT_POLICY)
    for path in (root / _SHIPPED, root / "etc/selinux" / policy / "contexts/lxc_contexts"):
        found = _settings(_read(path))
        process, file = found.get("process", ""), found.get("file", "")
        if process and file:
            return Contexts(process, file, found.get("ro_file") or file, policy, root)
    for process, file, shared in _FALLBACK:
        if known(process, root) and known(file, root):
            return Contexts(process, file, shared if known(shared, root) else file, policy, root)
    return None


def known(context: str, root: Path = Path("/")) -> bool:
    """Whether the loaded policy accepts ``context``: the kernel is asked (/sys/fs/selinux/context). Raises HostError."""
    path = root / _FILESYSTEM / "context"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, context.encode())
        finally:
            os.close(descriptor)
    except OSError as exc:
        if exc.errno == errno.EINVAL:
            return False
        raise HostError(f"can't ask SELinux about {context!r}: {exc.strerror}", errno=exc.errno) from exc
    return True


def label(path: str | int, context: str) -> bool:
    """Label one file (a path that is not followed, or a descriptor); False where it is so already or its file system has no labels.

    Raises OSError, EROFS among others.
    """
    follow = isinstance(path, int)
    wanted = context.encode() + b"\0"
    try:
        if os.getxattr(path, ATTRIBUTE, follow_symlinks=follow).rstrip(b"\0") == wanted[:-1]:
            return False
    except OSError as exc:
        if exc.errno not in _UNLABELLED:
            raise
    try:
        os.setxattr(path, ATTRIBUTE, wanted, follow_symlinks=follow)
    except OSError as exc:
        if exc.errno in (errno.ENOTSUP, errno.EOPNOTSUPP):
            return False
        raise
    return True


def label_all(paths: Iterable[Path], context: str) -> None:
    """Label files and directories of the server's own. Raises HostError naming the path."""
    for path in paths:
        try:
            label(os.fspath(path), context)
        except OSError as exc:
            raise HostError(f"can't give {path} the SELinux label {context}: {exc.strerror}", errno=exc.errno) from exc


def with_context(options: str, context: str) -> str:
    """Mount options by which all files of the mount have the label ``context``; unchanged for ""."""
    # Quoted, for the commas between categories would end the option.
    return f'{options},context="{context}"' if context else options


def _settings(text: str) -> Mapping[str, str]:
    """``key = "value"`` lines; comments begin with # or ;."""
    found: dict[str, str] = {}
    for raw in text.splitlines():
        line = raw.strip()
        if line and line[0] not in "#;":
            key, _, value = line.partition("=")
            found[key.strip()] = value.strip().strip('"')
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as exc:
        raise HostError(f"can't read {path}: {exc.strerror}", errno=exc.errno) from exc
