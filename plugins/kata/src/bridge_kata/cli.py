"""The command kata-runtime of Kata 1.x, driven by the kit for OCI runtimes: the backend and its sandboxes.

The machine is a sandbox container that is run first; containers name it in their annotations, and are deleted before it.

Trap: ``--root`` does not move its state, which is in fixed places.
Source: kata-containers/runtime 1.13, cli/ and virtcontainers/.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anyio import to_thread

from bridge.aio import Rollback
from bridge.errors import HostError, InvalidRequest
from bridge.host import netdial
from bridge.oci.cli import OciCli, OciSettings
from bridge.oci.container import OciContainer, load
from bridge.oci.dialect import Dialect, ExecCgroup
from bridge.oci.runtime import OciRuntime
from bridge.ports.host import HostContext
from bridge.ports.runtime import (
    Ability,
    ContainerIO,
    ContainerSpec,
    ExitStatus,
    Feature,
    Record,
    RuntimeBackend,
    RuntimeFeatures,
    SandboxKind,
    SandboxSpec,
    Support,
)
from bridge_kata.cli_container import CliContainer
from bridge_kata.options import KataOptions

_DIALECT = Dialect(state_dir="/run/kata-containers/containers-mapping/{id}", features=False, exec_cgroup=ExecCgroup.NONE, trial=False)
"""runc's, but for where its state is: there as long as kata-runtime knows the container."""
_BUNDLE = "machine"
_VERSION = 1


@dataclass(frozen=True, slots=True)
class KataRuntime(OciRuntime):
    """A runtime whose containers have no cgroup on the host: the machine has."""

    def cgroup(self, oci: Mapping[str, Any]) -> str | None:
        """None: the path in the spec is the guest's."""
        del oci
        return None


class CliSandbox:
    """One machine (bridge.ports.runtime.SandboxHandle); its process on the host is the sandbox container's stand-in."""

    def __init__(self, runtime: KataRuntime, spec: SandboxSpec, pause: OciContainer) -> None:
        self._runtime = runtime
        self._spec = spec
        self._pause = CliContainer(runtime, pause)
        self._dialer = netdial.Dialer(spec.namespaces.net)

    @property
    def id(self) -> str:
        """Also the sandbox container's."""
        return self._spec.id

    @property
    def pid(self) -> int | None:
        """The stand-in's."""
        return self._pause.pid

    @property
    def record(self) -> Record:
        """The sandbox container's."""
        return {"v": _VERSION, "pause": dict(self._pause.record)}

    async def create_container(self, spec: ContainerSpec) -> CliContainer:
        """Write its bundle; plugins may adjust its spec."""
        oci = self._runtime.context.adjusted(spec.oci, spec.id, self._spec, self._runtime.cli.settings.handler)
        return CliContainer(self._runtime, await OciContainer.create(self._runtime, replace(spec, oci=oci)))

    async def load_container(self, spec: ContainerSpec, record: Record) -> CliContainer:
        """From what the monitor holds."""
        return CliContainer(self._runtime, await load(self._runtime, spec, record))

    async def port_forward(self, port: int) -> socket.socket:
        """To the pod's address."""
        return await self._dialer.dial(port, addresses=self._spec.ips)

    async def wait(self) -> ExitStatus:
        """The end of the sandbox container, which is the machine's."""
        return await self._pause.wait()

    async def stop(self) -> None:
        """Delete the sandbox container, and the machine with it."""
        self._dialer.rest()
        await self._pause.delete()

    async def delete(self) -> None:
        """The same: nothing else is ours."""
        await self.stop()


class CliBackend:
    """See the module docstring. Machines take longer to start than containers, hence a runtime for each."""

    sandbox_kind = SandboxKind.VM

    def __init__(self, machines: KataRuntime, containers: KataRuntime) -> None:
        self._machines = machines
        self._containers = containers

    @property
    def features(self) -> RuntimeFeatures:
        """What the command has a verb for."""
        stats = Feature(Support.SUPPORTED, "by the verb events")
        pause = Feature(Support.SUPPORTED, "by Kata's agent in the guest")
        return RuntimeFeatures("", str(self._machines.cli.settings.path), {Ability.STATS: stats, Ability.PAUSE: pause})

    async def create_sandbox(self, spec: SandboxSpec) -> CliSandbox:
        """Run the sandbox container. Raises RuntimeFailed; then nothing of it is left."""
        pause_spec = _pause_spec(spec)
        await to_thread.run_sync(lambda: pause_spec.bundle.mkdir(mode=0o700, exist_ok=True))
        async with Rollback(f"boot {spec.id[:13]} by command", step_timeout=self._machines.cli.settings.timeouts.delete) as undo:
            pause = await OciContainer.create(self._machines, pause_spec)
            undo.push("delete the sandbox container", CliContainer(self._machines, pause).delete)
            await pause.start()
            undo.commit()
        return CliSandbox(self._containers, spec, pause)

    async def load_sandbox(self, spec: SandboxSpec, record: Record) -> CliSandbox:
        """The machine from before a restart. NotFound when it was never started."""
        return CliSandbox(self._containers, spec, await load(self._machines, _pause_spec(spec), record.get("pause") or {}))

    async def remove_strangers(self, known: Callable[[str], bool]) -> Sequence[str]:
        """Of the monitor's tasks, and of kata-runtime's list, which is the whole host's: only those with bundles of this server."""
        runtime = self._containers
        tasks = await runtime.lasting(lambda monitor: monitor.tasks())
        listed = await runtime.cli.list()
        ours = f"{runtime.context.run_root}/"
        sandboxes = {str(each["id"]) for each in listed if f"{each.get('bundle', '')}".startswith(ours) and _is_machine(each)}
        found = {str(each["id"]) for each in listed if f"{each.get('bundle', '')}".startswith(ours)}
        found |= {task.id for task in tasks if task.kind == "container"}
        strangers = sorted((ident for ident in found if not known(ident)), key=lambda ident: ident in sandboxes)
        for ident in strangers:  # machines last
            await CliContainer(runtime, OciContainer(runtime, ContainerSpec(ident, ident, Path(), {}, ContainerIO()))).delete()
        return strangers


def _is_machine(listed: Mapping[str, Any]) -> bool:
    return Path(str(listed.get("bundle", ""))).name == _BUNDLE


def bundle(spec: SandboxSpec) -> Path:
    """Where the sandbox container's bundle is."""
    return spec.state_dir / _BUNDLE


def _pause_spec(spec: SandboxSpec) -> ContainerSpec:
    if spec.oci is None:
        raise InvalidRequest(f"sandbox {spec.id} needs the spec of a sandbox container", field="oci")
    return ContainerSpec(spec.id, spec.id, bundle(spec), spec.oci, ContainerIO())


@asynccontextmanager
async def open_inner(
    name: str, path: Path, env: Mapping[str, str], options: KataOptions, context: HostContext, version: str
) -> AsyncIterator[RuntimeBackend]:
    """Serve the command while the block is open. Raises HostError."""
    del version
    root = context.state_root / name
    try:
        for directory in (root, context.run_root / "tty"):
            await to_thread.run_sync(lambda made=directory: made.mkdir(mode=0o700, parents=True, exist_ok=True))  # type: ignore[misc]
    except OSError as exc:
        raise HostError(f"can't make {exc.filename}: {exc.strerror}", errno=exc.errno) from exc
    arguments = () if options.config_path is None else ("--kata-config", str(options.config_path))
    settings = OciSettings(handler=name, path=path, root=root, global_args=arguments, env=env, timeouts=context.timeouts, dialect=_DIALECT)
    booting = replace(settings, timeouts=replace(context.timeouts, start=options.boot_timeout))
    machines, containers = (KataRuntime(OciCli(each), context, ExecCgroup.NONE) for each in (booting, settings))
    yield CliBackend(machines, containers)
