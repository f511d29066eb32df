"""The documents of a checkpoint, as checkpointctl, podman, CRI-O and containerd read and write them. Pure, but for reading a directory.

``config.dump`` says whose checkpoint it is and on what image it stands; ``spec.dump`` is its OCI spec, with the annotations that CRI-O
asks for; ``bind.mounts`` what was mounted into it. Source: checkpointctl lib/metadata.go.
"""

from __future__ import annotations

import json
import os
import re
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bridge.core.entities import Container, Sandbox
from bridge.errors import CorruptData, HostError
from bridge.ports.checkpoints import BINDS, CONFIG, SPEC

_ANNOTATIONS, _LABELS = "io.kubernetes.cri-o.Annotations", "io.kubernetes.cri-o.Labels"
_HEX = re.compile("[0-9a-f]{64}")
_LIMIT = 16 << 20
PROVIDED = frozenset(
    (
        *("/proc", "/dev", "/dev/pts", "/dev/mqueue", "/dev/shm", "/sys", "/sys/fs/cgroup"),
        *("/etc/resolv.conf", "/etc/hostname", "/etc/hosts", "/etc/passwd", "/etc/group", "/run/secrets", "/run/.containerenv"),
    )
)
"""Where a runtime mounts things of its own accord: none of these is asked of the one who restores."""
DIRECTORIES = frozenset(("/dev/pts", "/dev/mqueue", "/dev/shm", "/proc", "/dev", "/sys", "/sys/fs/cgroup", "/run/secrets"))
"""Those of them that are directories."""


@dataclass(frozen=True, slots=True)
class Described:
    """What an archive says of its container: names of its image, the surest first; its command; where something was mounted into it.

    ``own`` are those of PROVIDED where its engine had mounted something, ``masked`` what it hid of /proc and /sys.
    """

    images: Sequence[str]
    argv: Sequence[str]
    mounts: Sequence[str]
    own: Sequence[str] = ()
    masked: Sequence[str] = ()


def documents(container: Container, sandbox: Sandbox, oci: Mapping[str, Any], names: Sequence[str] = ()) -> dict[str, Any]:
    """Each document by the name of its file. ``names`` are those of its image, by which others pull it."""
    config = container.config
    notes = {**(oci.get("annotations") or {}), _ANNOTATIONS: json.dumps(dict(config.annotations)), _LABELS: json.dumps(dict(config.labels))}
    meta = sandbox.config.metadata
    named = config.image.user_specified_image or config.image.image
    digits = container.image_id.removeprefix("sha256:")
    linux = oci.get("linux") or {}
    spaces = [{"type": each["type"]} for each in linux.get("namespaces") or ()]  # their paths are nothing to anybody else
    return {
        CONFIG: {
            "id": container.id,
            "name": f"k8s_{config.metadata.name}_{meta.name}_{meta.namespace}_{meta.uid}_{config.metadata.attempt}",
            "rootfsImage": named,
            "rootfsImageID": digits,
            "rootfsImageRef": digits,
            "rootfsImageDigest": container.image_ref,  # ours alone: a tag may have moved on when it is pulled
            "rootfsImageName": named if named in names else next(iter(names), container.image_ref),
            "runtime": sandbox.handler,
            "createNetNS": {"type": "network"} in spaces,  # podman makes no network otherwise
            "createdTime": _time(container.created_at),
            "checkpointedTime": _time(time.time_ns()),
            "restoredTime": _time(container.started_at if container.checkpoint else 0),
            "restored": bool(container.checkpoint),
        },
        SPEC: {**oci, "annotations": notes, "linux": {**linux, "namespaces": spaces}},
        BINDS: _binds(oci),
    }


def _time(at_ns: int) -> str:
    if not at_ns:
        return "0001-01-01T00:00:00Z"
    return f"{datetime.fromtimestamp(at_ns // 10**9, UTC):%Y-%m-%dT%H:%M:%S}.{at_ns % 10**9:09d}Z"


def _is_bind(mount: Mapping[str, Any]) -> bool:
    return mount.get("type") == "bind" or bool({"bind", "rbind"} & set(mount.get("options") or ()))


def _binds(oci: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = []
    for mount in oci.get("mounts") or ():
        if not _is_bind(mount) or mount["destination"] in PROVIDED:
            continue
        try:
            mode = os.stat(mount["source"]).st_mode
        except OSError as exc:
            raise HostError(f"can't look at {mount['source']}, which is mounted into it: {exc.strerror}", errno=exc.errno) from exc
        kind = "directory" if stat.S_ISDIR(mode) else "file"
        where = {"source": mount["source"], "destination": mount["destination"]}
        found.append({**where, "file_type": kind, "permissions": stat.S_IMODE(mode) & 0o777})
    return found


def read(directory: Path) -> Described:
    """What the unpacked archive in ``directory`` says. Blocks. Raises CorruptData."""
    config, spec = _object(directory, CONFIG), _object(directory, SPEC)
    refs = [_text(config, key) for key in ("rootfsImageRef", "rootfsImageID")]  # the latter is podman's
    names = [f"sha256:{ref}" if _HEX.fullmatch(ref) else ref for ref in refs]
    names += [_text(config, key) for key in ("rootfsImageDigest", "rootfsImageName", "rootfsImage")]
    process, mounts = spec.get("process"), spec.get("mounts") or ()
    try:
        argv = [str(word) for word in process["args"]] if isinstance(process, dict) else []
        binds = [str(mount["destination"]) for mount in mounts if _is_bind(mount)]
        masked = [str(path) for path in (spec.get("linux") or {}).get("maskedPaths") or ()]
    except (TypeError, KeyError, AttributeError) as exc:
        raise CorruptData(f"the checkpoint's {SPEC} is no OCI spec: {exc!r}") from exc
    own = [each for each in binds if each in PROVIDED]
    return Described([name for name in dict.fromkeys(names) if name], argv, [each for each in binds if each not in PROVIDED], own, masked)


def _text(config: Mapping[str, Any], key: str) -> str:
    value = config.get(key)
    return value if isinstance(value, str) else ""


def _object(directory: Path, name: str) -> dict[str, Any]:
    try:
        with open(os.open(directory / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            text = stream.read(_LIMIT + 1)
        found = json.loads(text)
    except FileNotFoundError as exc:
        raise CorruptData(f"it is no checkpoint: it has no {name}") from exc
    except (OSError, ValueError) as exc:
        raise CorruptData(f"the checkpoint's {name} can't be read: {exc}") from exc
    if not isinstance(found, dict) or len(text) > _LIMIT:
        raise CorruptData(f"the checkpoint's {name} is no JSON object of at most {_LIMIT} bytes")
    return found
