"""What sandboxes, containers and execs of one opened handler share: its command line, its host, and how it takes sub-cgroups."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import anyio
from anyio import to_thread

from bridge import log
from bridge.errors import BridgeError, RuntimeFailed
from bridge.host import cgroup_paths, cgroups
from bridge.host.cgroup_paths import CgroupDriver
from bridge.host.oci_documents import at_start
from bridge.host.runtime_words import merge
from bridge.monitor.lasting import MONITOR_RETURN_SECONDS, lasting, present
from bridge.monitor.protocol import LaunchFailed
from bridge.oci.cli import OciCli, read_log
from bridge.oci.dialect import ExecCgroup, Scope
from bridge.ports.host import HostContext, Monitor

T = TypeVar("T")
_logger = log.get("oci.runtime")
_CRUN_SUBGROUP = "run.oci.systemd.subgroup"


@dataclass(frozen=True, slots=True)
class OciRuntime:
    """See the module docstring. ``version`` is the runtime's own line, "" for one that tells none."""

    cli: OciCli
    context: HostContext
    exec_cgroup: ExecCgroup
    version: str = ""

    @property
    def monitor(self) -> Monitor:
        """The live monitor. Raises MonitorGone."""
        return self.context.monitor()

    async def present(self) -> Monitor:
        """The live monitor, waited for while it is being replaced. Raises MonitorGone."""
        return await present(self.context.monitor)

    async def lasting(self, ask: Callable[[Monitor], Awaitable[T]], *, patience: float = MONITOR_RETURN_SECONDS) -> T:
        """Ask the monitor something that may be asked twice, again if it is replaced meanwhile.

        Raises MonitorGone when it stays away for ``patience`` seconds.
        """
        return await lasting(self.context.monitor, ask, patience=patience)

    async def launched(self, launch: Callable[[], Awaitable[int]]) -> int:
        """The pid that ``launch`` returns, while the kernel is made ready for the runtime's move between cgroups."""
        failure: Exception | None = None
        pid = 0
        async with anyio.create_task_group() as group:
            group.start_soon(_hasten, name="hasten the cgroup move")
            try:
                pid = await launch()
                group.cancel_scope.shield = True  # a pid that is known must reach the caller
            except Exception as exc:  # noqa: BLE001 - raised again below: the group would wrap it
                failure = exc
        if failure is not None:
            raise failure
        return pid

    async def failure(self, verb: str, exc: LaunchFailed, log: Path) -> RuntimeFailed:
        """The error of a failed launch: the runtime's log, then what its stderr adds."""
        said = await to_thread.run_sync(read_log, log)
        return self.cli.failure(verb, exc.exit_code, merge(said, exc.stderr_tail))

    def cgroup(self, oci: Mapping[str, Any]) -> str | None:
        """The cgroup of a container with this spec, from the hierarchies' root; None when its spec names none."""
        path = oci.get("linux", {}).get("cgroupsPath", "")
        driver = CgroupDriver.SYSTEMD if self.cli.settings.systemd_cgroup else CgroupDriver.CGROUPFS
        return cgroup_paths.of_cgroups_path(path, driver) if path else None

    def in_its_scope(self, oci: Mapping[str, Any]) -> Mapping[str, Any]:
        """``oci`` for a container that lives in its systemd scope itself, where kubelet, execs and OOM counts look for it.

        On cgroup v2 crun would put it one level deeper. It alone knows the annotation; one that came with the pod gives way.
        """
        if not self.cli.settings.systemd_cgroup:
            return oci
        return {**oci, "annotations": {**(oci.get("annotations") or {}), _CRUN_SUBGROUP: ""}}

    def final(self, oci: Mapping[str, Any], scope: Scope) -> Mapping[str, Any]:
        """``oci`` as the runtime finds it in the bundle."""
        return at_start(self.in_its_scope(self.cli.dialect.noted(oci, scope)))

    def console_socket(self, task_id: str) -> Path:
        """Where the monitor receives a container's pty; short, because a unix socket's path is at most 107 bytes."""
        return self.context.run_root / "tty" / task_id[:32]


async def _hasten() -> None:
    try:
        await to_thread.run_sync(cgroups.hasten_attach)
    except (BridgeError, OSError) as exc:
        _logger.debug("the cgroup move can't be hastened: %s", exc)
