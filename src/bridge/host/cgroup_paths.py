"""Where cgroups are: pure parsers of /proc files and the path rules of the two cgroup drivers.

Nothing here touches the file system. Sources: cgroups(7), proc(5) for the formats; the OCI runtime spec (config-linux,
cgroupsPath) and systemd.slice(5) for the rules. Standard library only: the monitor imports it.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from bridge.errors import InvalidRequest

UNIFIED = ""
"""Key of the cgroup v2 hierarchy wherever controllers are keys (the kernel leaves the field empty too)."""

_OPTIONS = {"rw", "ro", "xattr", "clone_children", "noprefix", "all", "none", "nsdelegate", "favordynmods", "memory_localevents"}
_OPTIONS |= {"memory_recursiveprot", "memory_hugetlb_accounting", "pids_localevents", "cpuset_v2_mode", "seclabel"}


class CgroupDriver(StrEnum):
    """Who makes the cgroups: the runtime itself, or systemd on its behalf. The kubelet must be set to the same."""

    CGROUPFS = "cgroupfs"
    SYSTEMD = "systemd"


@dataclass(frozen=True, slots=True)
class CgroupMount:
    """One mounted hierarchy: ``root`` is what of it is mounted (not "/" inside some containers)."""

    point: Path
    root: str = "/"

    def directory(self, cgroup: str) -> Path:
        """The directory of ``cgroup`` (a path from the hierarchy's root). One outside the mounted part is the mount point itself."""
        inside = posixpath.relpath("/" + cgroup.lstrip("/"), self.root)
        return self.point if inside == "." or inside.startswith("..") else self.point / inside


@dataclass(frozen=True, slots=True)
class CgroupLayout:
    """The mounted hierarchies by controller: "memory", "name=systemd" …, and UNIFIED for v2."""

    mounts: Mapping[str, CgroupMount]

    @property
    def is_v2(self) -> bool:
        """Whether v2 holds the controllers. A hybrid host, whose v2 hierarchy is for bookkeeping only, is v1."""
        return UNIFIED in self.mounts and not any(name for name in self.mounts if not name.startswith("name="))

    def directories(self, cgroup: str) -> tuple[Path, ...]:
        """``cgroup`` in every hierarchy, each once (co-mounted controllers share one)."""
        return tuple(dict.fromkeys(mount.directory(cgroup) for mount in self.mounts.values()))


def parse_mountinfo(text: str) -> CgroupLayout:
    """The layout out of /proc/<pid>/mountinfo. Of several mounts of one hierarchy the first counts (later ones are bind mounts)."""
    mounts: dict[str, CgroupMount] = {}
    for line in text.splitlines():
        head, separator, tail = line.partition(" - ")
        fields, source = head.split(" "), tail.split(" ")
        if not separator or len(fields) < 5 or len(source) < 3 or source[0] not in ("cgroup", "cgroup2"):
            continue
        mount = CgroupMount(Path(_unescape(fields[4])), _unescape(fields[3]))
        for name in (UNIFIED,) if source[0] == "cgroup2" else _controllers(source[2]):
            mounts.setdefault(name, mount)
    return CgroupLayout(mounts)


def _controllers(super_options: str) -> Iterable[str]:
    return (name for name in super_options.split(",") if name not in _OPTIONS and ("=" not in name or name.startswith("name=")))


def _unescape(field: str) -> str:
    if "\\" not in field:
        return field
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(code, character)
    return field


def parse_proc_cgroup(text: str) -> dict[str, str]:
    """Controller → cgroup path out of /proc/<pid>/cgroup, for example {"memory": "/kubepods/x", "": "/"}."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        _, first, rest = line.partition(":")
        names, second, path = rest.partition(":")
        if first and second:
            path = path.removesuffix(" (deleted)")
            found.update(dict.fromkeys(names.split(","), path))
    return found


def parse_counter(text: str, key: str) -> int:
    """The number after ``key`` in a flat keyed file such as memory.events; 0 when the kernel does not list it."""
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0


def expand_slice(name: str) -> str:
    """``a-b-c.slice`` as systemd lays it out: ``a.slice/a-b.slice/a-b-c.slice``; ``-.slice`` is the root, "".

    Raises InvalidRequest for what systemd would refuse: no ``.slice``, a slash, an empty component.
    """
    stem = name.removesuffix(".slice")
    if stem == name or "/" in name:
        raise InvalidRequest(f"{name!r} is not a systemd slice name", field="config.linux.cgroup_parent")
    if stem == "-":
        return ""
    parts = stem.split("-")
    if not all(parts):
        raise InvalidRequest(f"{name!r} has an empty component", field="config.linux.cgroup_parent")
    return "/".join("-".join(parts[: end + 1]) + ".slice" for end in range(len(parts)))


def pod_cgroup(parent: str, driver: CgroupDriver) -> str:
    """The pod's cgroup as a path from the hierarchies' root, for example ``/kubepods/burstable/pod7``.

    With the systemd driver the kubelet's ``cgroup_parent`` is a path whose last component is the slice's full name.
    Raises InvalidRequest for a parent that leaves the tree or is no slice under systemd.
    """
    clean = posixpath.normpath("/" + parent.lstrip("/"))
    if ".." in parent.split("/"):
        raise InvalidRequest(f"{parent!r} must not contain '..'", field="config.linux.cgroup_parent")
    if driver is CgroupDriver.CGROUPFS:
        if clean.endswith(".slice"):
            raise InvalidRequest(
                f"{parent!r} is a systemd slice but the cgroup driver is cgroupfs: set both to the same", field="config.linux.cgroup_parent"
            )
        return clean
    return "/" + expand_slice(posixpath.basename(clean)) if clean != "/" else "/system.slice"


def of_cgroups_path(cgroups_path: str, driver: CgroupDriver) -> str:
    """Where a container with this ``linux.cgroupsPath`` is, as a path from the hierarchies' root.

    ``/kubepods/pod7/cri-bridge-ID`` is itself; ``slice:cri-bridge:ID`` under systemd is a scope in that slice (runc's rule).
    Raises InvalidRequest for a path without meaning to the driver.
    """
    if driver is CgroupDriver.CGROUPFS:
        if not cgroups_path.startswith("/"):
            raise InvalidRequest(f"{cgroups_path!r} must be absolute for the cgroupfs driver", field="linux.cgroupsPath")
        return posixpath.normpath(cgroups_path)
    parts = cgroups_path.split(":")
    if len(parts) != 3:
        raise InvalidRequest(f"{cgroups_path!r} must be slice:prefix:name for the systemd driver", field="linux.cgroupsPath")
    parent, prefix, name = parts
    return posixpath.join("/", expand_slice(parent or "system.slice"), f"{prefix}-{name}.scope")
