"""What lies on this host with an id of a pod or container in its name or content, in places that belong to one server alone.

Reads only, and knows nothing of records: ``leaks`` compares. A server's own places are its run directory, its image store and its
monitor; what is found elsewhere (cgroups, leases) says by its id alone whose it is, and is not called ours without more evidence.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bridge.config import Config
from bridge.core import remains
from bridge.host import cgroups, mounts
from bridge.host.cgroup_paths import CgroupLayout

_CGROUP = re.compile(r"cri-bridge-([0-9a-f]{64})(?:\.scope)?")
_HEX = re.compile(r"(?<![0-9a-f])[0-9a-f]{32,64}(?![0-9a-f])")
_STRANGE = 4


@dataclass(frozen=True, slots=True)
class Trace:
    """One thing: its kind, where it is, the id it carries (or its first 32 digits), and what it seems to belong to.

    ``ours`` is False for what lies where other servers and runtimes have theirs too.
    """

    kind: str
    path: str
    ident: str
    about: str = ""
    ours: bool = True


@dataclass(frozen=True, slots=True)
class Places:
    """Where one server's things are. ``leases`` holds host-local's directories, each with its network's name."""

    run_dir: Path
    snapshots: Path
    leases: Mapping[Path, str] = field(default_factory=dict)
    layout: CgroupLayout = field(default_factory=lambda: CgroupLayout({}))
    mountinfo: Path = Path("/proc/self/mountinfo")

    @classmethod
    def of(cls, config: Config, leases: Mapping[Path, str]) -> Places:
        """Those of the server with this configuration."""
        return cls(config.server.run_dir, config.images.root / "snapshots", leases, cgroups.layout())


def find(places: Places) -> Sequence[Trace]:
    """Everything with an id. Raises OSError, mostly for want of rights."""
    found = [*_pods(places.run_dir / "sandboxes"), *_runtimes(places.run_dir / "runtimes"), *_loose(places.run_dir)]
    found += _mounts(places)
    found += [Trace("writable layer", str(places.snapshots / name), name, "of a container") for name in _names(places.snapshots)]
    return [*found, *_cgroups(places.layout), *_leases(places.leases)]


def _pods(directory: Path) -> Iterator[Trace]:
    for pod in _names(directory):
        yield Trace("pod directory", str(directory / pod), pod)
        for kind in _names(directory / pod / "ns"):
            yield Trace("namespace", str(directory / pod / "ns" / kind), pod, f"{kind} namespace of a pod")
        for ident, bundle in remains.bundles(directory / pod):
            yield Trace("bundle", str(bundle), ident, f"pod {pod[:13]}")


def _runtimes(directory: Path) -> Iterator[Trace]:
    for handler in _names(directory):
        for name in _names(directory / handler):
            ident = name.removesuffix(".json")
            if remains.is_id(ident):
                yield Trace("runtime state", str(directory / handler / name), ident, f"handler {handler}")


def _loose(run_dir: Path) -> Iterator[Trace]:
    """Sockets, fifos and the like that carry an id, outside the directories of pods and runtimes."""
    for place, names, files in os.walk(run_dir):
        depth = len(Path(place).relative_to(run_dir).parts)
        names[:] = [name for name in names if depth or name not in ("sandboxes", "runtimes", "pause")] if depth < _STRANGE else []
        for name in (*files, *names):
            carried = _HEX.search(name)
            if carried:
                yield Trace("socket or file", os.path.join(place, name), carried[0])


def _mounts(places: Places) -> Iterator[Trace]:
    table = mounts.parse_mountinfo(places.mountinfo.read_text(errors="surrogateescape"))
    for top in (places.run_dir, places.snapshots):
        for mount in mounts.below(table, top):
            parts = Path(mount.target.removesuffix("//deleted")).relative_to(top).parts
            carried = [part for part in parts if remains.is_id(part)]
            if carried and "ns" not in parts:  # pins are told of as namespaces
                yield Trace("mount", mount.target, carried[-1], mount.fstype)


def _cgroups(layout: CgroupLayout) -> Iterator[Trace]:
    found: dict[tuple[str, str], list[int]] = {}
    for point in {mount.point for mount in layout.mounts.values()}:
        for place, names, _ in os.walk(point):
            for name in names:
                match = _CGROUP.fullmatch(name)
                if match:
                    path = Path(place, name)
                    found.setdefault((match[1], "/" + str(path.relative_to(point))), []).extend(cgroups.pids(path))
    for (ident, cgroup), pids in found.items():
        yield Trace("cgroup", cgroup, ident, "" if pids else "empty", ours=False)
        yield from (Trace("process", f"{pid} {_command(pid)}", ident, f"in cgroup {cgroup}", ours=False) for pid in sorted(set(pids)))


def _leases(directories: Mapping[Path, str]) -> Iterator[Trace]:
    """Files named like the address, whose first line is the id that it is leased to (the plugin host-local, on disk)."""
    for directory, network in directories.items():
        for name in _names(directory):
            if name[:1].isdigit() or ":" in name or "_" in name:
                try:
                    ident = (directory / name).read_text(errors="replace").split("\n")[0].strip()
                except OSError:
                    continue  # given back meanwhile
                if remains.is_id(ident):
                    yield Trace("address", str(directory / name), ident, f"network {network}", ours=False)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[:80]
    except OSError:
        return ""


def _names(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []
