"""What the sandboxes, containers and execs of one opened handler share: runsc, the host, the monitor and the sampler."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from anyio import to_thread

from bridge.host import cgroups
from bridge.host.oci_documents import in_cgroupfs, write_json
from bridge.monitor.lasting import MONITOR_RETURN_SECONDS, lasting, present
from bridge.oci import strays
from bridge.ports.host import HostContext, Monitor
from bridge.ports.runtime import RuntimeFeatures, SandboxSpec
from bridge_gvisor.runsc import Runsc
from bridge_gvisor.sampler import Sampler
from bridge_gvisor.spec import of_sandbox, without_young

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class GvisorHost:
    """See the module docstring."""

    runsc: Runsc
    context: HostContext
    features: RuntimeFeatures
    sampler: Sampler
    verbs: frozenset[str]
    all_capabilities: bool = True

    @property
    def monitor(self) -> Monitor:
        """The live monitor. Raises MonitorGone."""
        return self.context.monitor()

    async def present(self) -> Monitor:
        """The live monitor, waited for while it is being replaced. Raises MonitorGone."""
        return await present(self.context.monitor)

    async def lasting(self, ask: Callable[[Monitor], Awaitable[T]], *, patience: float = MONITOR_RETURN_SECONDS) -> T:
        """Ask the monitor something that may be asked twice, again if it is replaced meanwhile. Raises MonitorGone."""
        return await lasting(self.context.monitor, ask, patience=patience)

    def sandbox_spec(self, spec: SandboxSpec) -> dict[str, Any]:
        """The sandbox container's spec as this runsc takes it on this host."""
        settings = self.runsc.settings
        made = of_sandbox(spec, systemd_cgroup=settings.systemd_cgroup, seccomp=settings.seccomp, unified=cgroups.is_v2())
        return made if settings.systemd_cgroup else dict(in_cgroupfs(made))

    def process(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """A process as this runsc takes it."""
        return given if self.all_capabilities else without_young(given)

    def console_socket(self, ident: str) -> Path:
        """Where the monitor receives a container's pty; short, because a unix socket's path is at most 107 bytes."""
        return self.context.run_root / "tty" / ident[:32]

    async def write_bundle(self, bundle: Path, oci: Mapping[str, Any]) -> None:
        """Make ``bundle`` if it is missing, and its config.json."""

        def write() -> None:
            bundle.mkdir(mode=0o700, exist_ok=True)
            write_json(bundle / "config.json", oci if self.runsc.settings.systemd_cgroup else in_cgroupfs(oci))

        await to_thread.run_sync(write)

    async def end_verbs(self, ident: str) -> None:
        """SIGKILL every runsc that was started for a container or sandbox and still runs; not the sandbox itself."""
        await to_thread.run_sync(strays.end_verbs, self.runsc.settings.path, ident)
