"""A handler on a runc-compatible runtime: opening it means finding its binary and probing it (bridge.ports.runtime.RuntimeBackend)."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from anyio import to_thread

from bridge.errors import HostError
from bridge.oci import sandbox
from bridge.oci.cli import OciCli, OciSettings
from bridge.oci.container import OciContainer
from bridge.oci.dialect import Scope
from bridge.oci.probe import probe
from bridge.oci.runtime import OciRuntime
from bridge.oci.sandbox import OciSandbox
from bridge.ports.host import HostContext
from bridge.ports.runtime import ContainerIO, ContainerSpec, Record, RuntimeFeatures, SandboxKind, SandboxSpec

_ID = re.compile("[0-9a-f]{64}")


class OciBackend:
    """See the module docstring. Made by ``open_backend``."""

    def __init__(self, runtime: OciRuntime, features: RuntimeFeatures) -> None:
        self._runtime = runtime
        self._features = features

    @property
    def features(self) -> RuntimeFeatures:
        """What the probe found."""
        return self._features

    @property
    def sandbox_kind(self) -> SandboxKind:
        """Pinned namespaces; a process only where PIDs are shared."""
        return SandboxKind.NAMESPACES

    async def create_sandbox(self, spec: SandboxSpec) -> OciSandbox:
        """See bridge.oci.sandbox.create."""
        return await sandbox.create(self._runtime, spec)

    async def load_sandbox(self, spec: SandboxSpec, record: Record) -> OciSandbox:
        """See bridge.oci.sandbox.load_sandbox."""
        return await sandbox.load_sandbox(self._runtime, spec, record)

    def final_spec(self, oci: Mapping[str, Any]) -> Mapping[str, Any]:
        """A container's spec as it stands in the bundle, but for the place of a shared PID namespace, which only a pod knows."""
        return self._runtime.final(oci, Scope.CONTAINERS)

    async def remove_strangers(self, known: Callable[[str], bool]) -> Sequence[str]:
        """See the port: of the monitor's tasks, and of this runtime's own list."""
        runtime = self._runtime
        tasks = await runtime.lasting(lambda monitor: monitor.tasks())
        listed = await to_thread.run_sync(runtime.cli.containers)
        found = {task.id for task in tasks if task.kind == "container"}.union(filter(_ID.fullmatch, listed))
        strangers = sorted(ident for ident in found if not known(ident))
        for ident in strangers:
            await OciContainer(runtime, ContainerSpec(ident, ident, Path(), {}, ContainerIO())).delete()
        return strangers


def _make_directories(settings: OciSettings, context: HostContext) -> None:
    try:
        for path in (settings.root, context.state_root, context.run_root / "tty", context.cache_dir):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        context.cache_dir.chmod(0o711)  # the trial's root filesystem is below it, and root of a user namespace is nobody here
    except OSError as exc:
        raise HostError(f"can't make {exc.filename}: {exc.strerror}", errno=exc.errno) from exc


@asynccontextmanager
async def open_backend(settings: OciSettings, context: HostContext) -> AsyncIterator[OciBackend]:
    """Probe the runtime and serve it while the block is open; containers outlive it.

    Raises HostError, Unsupported or RuntimeFailed with why this runtime can't be used on this host.
    """
    await to_thread.run_sync(_make_directories, settings, context)
    cli = OciCli(settings)
    name = f"probe-{settings.handler}"
    found = await probe(cli, cache=context.state_root / f"{name}.json", scratch=Path(context.cache_dir) / name, bundles=context.run_root)
    yield OciBackend(OciRuntime(cli, context, found.exec_cgroup, found.features.version), found.features)
