"""What the sandboxes, containers and execs of one opened shim handler share: its settings, its host, and what shims told of."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from typing import Any as Anything
from weakref import WeakSet

from anyio import to_thread

from bridge.aio import Supervisor
from bridge.host import cgroup_paths, cgroups
from bridge.host.cgroup_paths import CgroupDriver
from bridge.host.oci_documents import in_cgroupfs, write_json
from bridge.monitor.lasting import MONITOR_RETURN_SECONDS, lasting
from bridge.ports.host import HostContext, Monitor, RuntimeTimeouts
from bridge.ports.runtime import ContainerIO, SandboxKind
from bridge.shimv2.pins import FifoPins
from bridge.shimv2.task import Stdio
from bridge.shimv2.verbs import ShimBinary

if TYPE_CHECKING:
    from bridge._proto.containerd.types import Any

T = TypeVar("T")
SHIM_DIED = "ShimDied"
"""Reason of an exit that came from the death of a shim."""


@dataclass(frozen=True, slots=True)
class ShimSettings:
    """One handler's shim. ``root`` is this handler's own directory for what it has under way, gone at reboot.

    ``options`` go with every Create; ``owned_options`` are those for a container whose pipes belong to another uid and gid.
    ``per_container`` runs the verb "start" for each container, and so leaves to the shim which of them share a process; else one
    shim serves a whole pod. ``drain`` is how long output is awaited after an exit, in seconds.
    ``own_cgroups`` tells that containers are in the cgroups that their specs name, so that the host can count and kill there.
    ``trial`` lets the probe run a container. ``pipes``: see ``given``.
    """

    binary: ShimBinary
    root: Path
    kind: SandboxKind = SandboxKind.NAMESPACES
    options: Any | None = None
    owned_options: Callable[[int, int], Any] | None = None
    systemd_cgroup: bool = False
    per_container: bool = False
    own_cgroups: bool = True
    trial: bool = True
    pipes: bool = False
    drain: float = 2.0
    timeouts: RuntimeTimeouts = field(default_factory=RuntimeTimeouts)

    def options_of(self, io: ContainerIO) -> Any | None:
        """The options for a container with this stdio."""
        return self.options if io.owner is None or self.owned_options is None else self.owned_options(*io.owner)

    def given(self, stdio: Stdio) -> Stdio:
        """What a shim is told of this stdio.

        With ``pipes`` nothing is left out: for what is, a shim lets its runtime have the host's /dev/null, and crun ≤ 1.23 gives that to
        the user that it starts.
        """
        return stdio.piped() if self.pipes else stdio

    @property
    def handler(self) -> str:
        """The handler's name."""
        return self.binary.handler


@dataclass(frozen=True, slots=True)
class ShimRuntime:
    """See the module docstring. ``tasks`` are ended with the handler; containers outlive it.

    ``oom`` holds the ids of containers of which a shim told that memory ran out, ``ended`` those whose exit it told as an event, until
    they are deleted. ``pins`` are those of all containers that there are handles of.
    """

    settings: ShimSettings
    context: HostContext
    tasks: Supervisor
    oom: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)
    pins: WeakSet[FifoPins] = field(default_factory=WeakSet)

    def pin(self) -> FifoPins:
        """Pins for a container."""
        made = FifoPins()
        self.pins.add(made)
        return made

    def close(self) -> None:
        """The handler is closed: its containers go on without it."""
        for pins in tuple(self.pins):
            pins.close()

    @property
    def monitor(self) -> Monitor:
        """The live monitor. Raises MonitorGone."""
        return self.context.monitor()

    async def lasting(self, ask: Callable[[Monitor], Awaitable[T]], *, patience: float = MONITOR_RETURN_SECONDS) -> T:
        """Ask the monitor something that may be asked twice, again if it is replaced meanwhile. Raises MonitorGone."""
        return await lasting(self.context.monitor, ask, patience=patience)

    def cgroup(self, oci: Mapping[str, Anything]) -> str | None:
        """The cgroup of a container with this spec, from the hierarchies' root; None when the host can't see into it."""
        path = oci.get("linux", {}).get("cgroupsPath", "")
        if not path or not self.settings.own_cgroups:
            return None
        return cgroup_paths.of_cgroups_path(path, CgroupDriver.SYSTEMD if self.settings.systemd_cgroup else CgroupDriver.CGROUPFS)

    def fitting(self, oci: Mapping[str, Anything]) -> Mapping[str, Anything]:
        """A spec with its cgroup in the form that this handler's driver takes."""
        return oci if self.settings.systemd_cgroup else in_cgroupfs(oci)

    # What was started is marked on disk before, and unmarked when nothing of it is left: a server that lost its records finds it.

    async def mark(self, ident: str, sandbox_id: str, bundle: Path, shim_bundle: Path) -> None:
        """Remember that a task (a container, or a pod's shim) is about to be started."""
        mark = {"sandbox": sandbox_id, "bundle": str(bundle), "shim": str(shim_bundle)}
        await to_thread.run_sync(write_json, self.settings.root / f"{ident}.json", mark)

    async def unmark(self, ident: str) -> None:
        """Nothing is left of it. Repeatable."""
        await to_thread.run_sync(lambda: (self.settings.root / f"{ident}.json").unlink(missing_ok=True))

    async def is_marked(self, ident: str) -> bool:
        """Whether a start of it was begun, and it was not seen to its end."""
        return await to_thread.run_sync((self.settings.root / f"{ident}.json").exists)

    async def marks(self) -> Mapping[str, Mapping[str, str]]:
        """Every marked task by id: the ids of its sandbox, and the bundles of it and of its shim."""
        return await to_thread.run_sync(_read_marks, self.settings.root)


def _read_marks(root: Path) -> Mapping[str, Mapping[str, str]]:
    found = {}
    for name in os.listdir(root):
        if name.endswith(".json"):
            try:
                found[name.removesuffix(".json")] = json.loads((root / name).read_text())
            except (OSError, ValueError):  # unmarked meanwhile, or cut off by a crash before anything was started
                continue
    return found


def oom_kills(cgroup: str | None) -> int:
    """OOM kills counted in a cgroup since it was made; 0 when it is gone or can't be seen. Blocks."""
    mount = cgroups.layout().mounts.get("" if cgroups.is_v2() else "memory") if cgroup is not None else None
    try:
        return 0 if mount is None or cgroup is None else cgroups.oom_kills(mount.directory(cgroup))
    except OSError:
        return 0
