"""A handler on a containerd shim: opening it means trying the shim once, and taking its events (bridge.ports.runtime.RuntimeBackend)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from anyio import to_thread

from bridge import log
from bridge._proto.containerd.events import TaskExit, TaskOom
from bridge.aio import Supervisor
from bridge.errors import HostError
from bridge.host.oci_documents import at_start
from bridge.ports.host import HostContext
from bridge.ports.runtime import Record, RuntimeFeatures, SandboxKind, SandboxSpec
from bridge.shimv2 import sandbox, strangers
from bridge.shimv2.events import ShimEvent, serve_events
from bridge.shimv2.probe import Claims, no_claims, probe
from bridge.shimv2.runtime import ShimRuntime, ShimSettings
from bridge.shimv2.sandbox import ShimSandbox

_logger = log.get("shimv2.backend")


class ShimBackend:
    """See the module docstring. Made by ``open_backend``."""

    def __init__(self, runtime: ShimRuntime, features: RuntimeFeatures) -> None:
        self._runtime = runtime
        self._features = features

    @property
    def features(self) -> RuntimeFeatures:
        """What the probe found."""
        return self._features

    @property
    def sandbox_kind(self) -> SandboxKind:
        """As configured: the shim itself does not tell."""
        return self._runtime.settings.kind

    async def create_sandbox(self, spec: SandboxSpec) -> ShimSandbox:
        """See bridge.shimv2.sandbox.create."""
        return await sandbox.create(self._runtime, spec)

    async def load_sandbox(self, spec: SandboxSpec, record: Record) -> ShimSandbox:
        """See bridge.shimv2.sandbox.load."""
        return await sandbox.load(self._runtime, spec, record)

    def final_spec(self, oci: Mapping[str, Any]) -> Mapping[str, Any]:
        """A container's spec as it stands in the bundle, but for the place of a shared PID namespace, which only a pod knows."""
        return at_start(self._runtime.fitting(sandbox.grouped(oci, str(oci.get("annotations", {}).get(sandbox.SANDBOX_ID, "")))))

    def final_sandbox_spec(self, spec: SandboxSpec) -> Mapping[str, Any]:
        """The same of a pod's own container, before plugins adjust it."""
        return self.final_spec(spec.oci or {})

    async def remove_strangers(self, known: Callable[[str], bool]) -> Sequence[str]:
        """See bridge.shimv2.strangers."""
        return await strangers.remove(self._runtime, known)


def _make_directories(settings: ShimSettings, context: HostContext) -> None:
    try:
        for path in (settings.root, context.state_root, context.run_root / "tty", context.cache_dir):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        context.cache_dir.chmod(0o711)  # the trial's root filesystem is below it, and root of a user namespace is nobody here
    except OSError as exc:
        raise HostError(f"can't make {exc.filename}: {exc.strerror}", errno=exc.errno) from exc


def events_socket(context: HostContext, handler: str) -> Path:
    """Where a handler's shims bring their events; the same after a restart, for the shims that still live."""
    return context.run_root / f"{handler}.events"


@asynccontextmanager
async def open_backend(settings: ShimSettings, context: HostContext, *, claims: Claims = no_claims) -> AsyncIterator[ShimBackend]:
    """Try the shim and serve it while the block is open; containers outlive it. ``claims`` tells of abilities that a trial can't show.

    Raises HostError, Unsupported or RuntimeFailed with why this shim can't be used on this host.
    """
    await to_thread.run_sync(_make_directories, settings, context)
    async with Supervisor(f"handler {settings.handler}") as tasks:
        runtime = ShimRuntime(settings, context, tasks)

        def on_event(event: ShimEvent) -> None:
            found = event.event
            if isinstance(found, TaskOom):
                runtime.oom.add(found.container_id)
            elif isinstance(found, TaskExit) and found.id == found.container_id and not settings.own_cgroups:
                runtime.ended.add(found.container_id)

        try:
            async with serve_events(events_socket(context, settings.handler), on_event):
                yield ShimBackend(runtime, await probe(runtime, claims))
        finally:
            runtime.close()
