"""A handler on runsc: opening it means finding its binary and trying it (bridge.ports.runtime.RuntimeBackend)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from anyio import to_thread

from bridge.errors import HostError, Unsupported
from bridge.ports.host import HostContext
from bridge.ports.runtime import Record, RuntimeFeatures, SandboxKind, SandboxSpec
from bridge_gvisor import hiding, sandbox
from bridge_gvisor import spec as specs
from bridge_gvisor.host import GvisorHost
from bridge_gvisor.probe import probe
from bridge_gvisor.runsc import Runsc, RunscSettings
from bridge_gvisor.sampler import Sampler
from bridge_gvisor.sandbox import GvisorSandbox


class GvisorBackend:
    """See the module docstring. Made by ``open_backend``."""

    def __init__(self, host: GvisorHost) -> None:
        self._host = host

    @property
    def features(self) -> RuntimeFeatures:
        """What the probe found."""
        return self._host.features

    @property
    def sandbox_kind(self) -> SandboxKind:
        """A sandbox container first, its members inside."""
        return SandboxKind.CONTAINER

    async def create_sandbox(self, spec: SandboxSpec) -> GvisorSandbox:
        """See bridge_gvisor.sandbox.create. Raises Unsupported for a pod in the node's network that would not get it."""
        network = self._host.runsc.settings.network
        if spec.namespaces.net is None and network != "host":
            raise Unsupported(
                "config.linux.security_context.namespace_options.network: a pod in the node's network needs a handler with "
                f'options.network = "host"; this one has {network!r}'
            )
        return await sandbox.create(self._host, spec)

    async def load_sandbox(self, spec: SandboxSpec, record: Record) -> GvisorSandbox:
        """See bridge_gvisor.sandbox.load."""
        return await sandbox.load(self._host, spec, record)

    def final_spec(self, oci: Mapping[str, Any]) -> Mapping[str, Any]:
        """A container's spec as runsc gets it, but for mounts over masked paths: an image's files decide on those."""
        settings, notes = self._host.runsc.settings, oci.get("annotations", {})
        made = specs.of_container(oci, notes.get(specs.CONTAINER_ID, ""), notes.get(specs.SANDBOX_ID, ""), seccomp=settings.seccomp)
        return hiding.without_own({**made, "process": self._host.process(made["process"])})

    def final_sandbox_spec(self, spec: SandboxSpec) -> Mapping[str, Any]:
        """The sandbox container's spec."""
        return self._host.sandbox_spec(spec)

    async def remove_strangers(self, known: Callable[[str], bool]) -> Sequence[str]:
        """See the port: of what runsc has state of below this handler's root, which nobody else uses. Members go first."""
        runsc = self._host.runsc
        tasks = {task.id for task in await self._host.lasting(lambda monitor: monitor.tasks()) if task.kind == "told"}
        listed = [ident for ident, _ in await to_thread.run_sync(runsc.known)]
        strangers = [ident for ident in (*listed, *sorted(tasks - set(listed))) if not known(ident)]
        for ident in strangers:
            await sandbox.remove_stranger(self._host, ident)
        return strangers


@asynccontextmanager
async def open_backend(settings: RunscSettings, context: HostContext) -> AsyncIterator[GvisorBackend]:
    """Try runsc and serve it while the block is open; sandboxes outlive it.

    Raises HostError, Unsupported or RuntimeFailed with why this runsc can't be used on this host.
    """
    runsc = Runsc(settings)
    await to_thread.run_sync(_make_directories, settings, context)
    name = f"probe-{settings.handler}"
    found = await probe(runsc, cache=context.state_root / f"{name}.json", scratch=context.cache_dir / name)
    sampler = Sampler(runsc.stats, settings.stats_interval)
    yield GvisorBackend(GvisorHost(runsc, context, found.features, sampler, found.verbs, found.all_capabilities))


def _make_directories(settings: RunscSettings, context: HostContext) -> None:
    try:
        for path in (settings.root, context.state_root, context.run_root / "tty", context.cache_dir):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise HostError(f"can't make {exc.filename}: {exc.strerror}", errno=exc.errno) from exc
