"""A handler and its pods. A pod is the namespaces that the server has made: nothing is run for it, so nothing is kept of it."""

import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import anyio
from anyio import to_thread
from bridge.errors import ConfigError, HostError, NotFound, Unsupported
from bridge.host import netdial, process
from bridge.host.cgroup_paths import CgroupDriver
from bridge.monitor.lasting import lasting
from bridge.ports.host import HostContext
from bridge.ports.runtime import (
    Ability,
    ContainerIO,
    ContainerSpec,
    ExitStatus,
    Feature,
    Record,
    RuntimeFeatures,
    SandboxKind,
    SandboxSpec,
    Support,
)

from bridge_chroot.container import ChrootContainer, Launcher
from bridge_chroot.options import ChrootOptions

WORKS = (
    Ability.EXEC,
    Ability.TTY,
    Ability.PORT_FORWARD,
    Ability.STATS,
    Ability.UPDATE,
    Ability.HOST_NETWORK,
    Ability.HOST_NAMESPACES,
    Ability.TARGET_PID,
    Ability.SYSCTLS,
    Ability.CONTAINER_LIMITS,
)
"""What the launcher does, and what the server does for a runtime whose containers are processes of the host."""
MISSING = {
    Ability.SECCOMP: "the launcher installs no filter",
    Ability.APPARMOR: "the launcher sets no profile",
    Ability.SELINUX: "the launcher sets no label",
    Ability.SHARED_PID: "a pod has no process that could own the namespace",
    Ability.USER_NAMESPACES: "the launcher does not enter any",
    Ability.DEVICES: "the launcher makes the usual nodes alone",
    Ability.HOST_DEVICES: "the launcher makes the usual nodes alone",
    Ability.MOUNT_PROPAGATION: "all mounts are private",
    Ability.START_CONTAINER_HOOKS: "the launcher runs no hooks",
    Ability.RECURSIVE_READ_ONLY: "the launcher remounts one mount, not those below; the server may do it instead",
    Ability.IDMAPPED_MOUNTS: "the launcher maps none",
    Ability.SECCOMP_NOTIFY: "the launcher installs no filter",
    Ability.NET_DEVICES: "not written",
    Ability.RDT_SCHEMATA: "not written",
    Ability.SYSTEMD_CGROUP: "the launcher joins cgroups that the plugin makes itself",
    Ability.PAUSE: "not written",
    Ability.CHECKPOINT: "not written",
}


@dataclass(frozen=True)
class ChrootSandbox:
    """A pod (bridge.ports.runtime.SandboxHandle). Every method of the port is here, though most have nothing to do."""

    launcher: Launcher
    spec: SandboxSpec

    @property
    def id(self) -> str:
        """The server's id of it."""
        return self.spec.id

    @property
    def record(self) -> Record:
        """What ``load_sandbox`` gets after a restart: a version, and for us nothing else."""
        return {"v": 1}

    @property
    def pid(self) -> None:
        """No process stands for the pod."""
        return

    async def create_container(self, spec: ContainerSpec) -> ChrootContainer:
        """Write its bundle; plugins may change its OCI spec first."""
        oci = self.launcher.context.adjusted(spec.oci, spec.id, self.spec, self.launcher.handler)
        return await ChrootContainer.create(self.launcher, spec, oci)

    async def load_container(self, spec: ContainerSpec, record: Record) -> ChrootContainer:
        """A container from before a restart, running or ended. Raises NotFound when nothing is left of it."""
        return await ChrootContainer.load(self.launcher, spec, record)

    async def port_forward(self, port: int) -> socket.socket:
        """A connection to the pod's localhost, made in its network namespace."""
        return await netdial.dial(self.spec.namespaces.net, port)

    async def wait(self) -> ExitStatus:
        """A pod without a process does not die."""
        return await _for_ever()

    async def stop(self) -> None:
        """The server has stopped the containers; there is nothing else."""

    async def delete(self) -> None:
        """The server removes the namespaces and the directory, which are its own."""


async def _for_ever() -> NoReturn:
    await anyio.sleep_forever()
    raise AssertionError("unreachable")


class ChrootBackend:
    """An opened handler (bridge.ports.runtime.RuntimeBackend)."""

    sandbox_kind = SandboxKind.NAMESPACES

    def __init__(self, launcher: Launcher, features: RuntimeFeatures) -> None:
        self.features = features
        self._launcher = launcher

    async def create_sandbox(self, spec: SandboxSpec) -> ChrootSandbox:
        """Nothing is run. What core doesn't know to be unsupported would be refused here, naming the field."""
        return ChrootSandbox(self._launcher, spec)

    async def load_sandbox(self, spec: SandboxSpec, record: Record) -> ChrootSandbox:
        """The pod from before a restart."""
        if record.get("v") != 1:
            raise NotFound(f"sandbox {spec.id} was made by another release of this plugin")
        return ChrootSandbox(self._launcher, spec)

    async def remove_strangers(self, known: Callable[[str], bool]) -> Sequence[str]:
        """What an earlier server of these directories started and nobody owns any more: list first, ask afterwards."""
        tasks = await lasting(self._launcher.context.monitor, lambda monitor: monitor.tasks())
        mine = [task.id for task in tasks if task.kind == "container" and (self._launcher.state / task.id).exists()]
        strangers = [ident for ident in mine if not known(ident)]
        for ident in strangers:
            await ChrootContainer(self._launcher, ContainerSpec(ident, "", Path(), {}, ContainerIO()), None).delete()
        return strangers


async def probe(launcher: Launcher) -> RuntimeFeatures:
    """Find out what works here. A real plugin runs a throw-away container; this one asks the interpreter for its version."""
    done = await process.run([*launcher.interpreter, "--version"], timeout=launcher.context.timeouts.probe)
    if done.returncode:
        raise HostError(f"{launcher.interpreter[0]} can't be run: {done.stderr.decode(errors='replace')}")
    version = f"chroot example on {done.stdout.decode().strip()}"
    return RuntimeFeatures(version, launcher.interpreter[0], _abilities())


def _abilities() -> Mapping[Ability, Feature]:
    """All there are: one that a later server adds is one that this plugin knows nothing of."""
    found = {ability: Feature(Support.UNSUPPORTED, MISSING.get(ability, "unknown to this plugin")) for ability in Ability}
    return found | {ability: Feature(Support.SUPPORTED, "by the launcher and the node's kernel") for ability in WORKS}


def _make(*directories: Path) -> None:
    for path in directories:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)


@asynccontextmanager
async def open_handler(name: str, options: Any, context: HostContext) -> AsyncIterator[ChrootBackend]:
    """Open handler ``name``. What is raised here is why it is disabled; containers outlive the block."""
    assert isinstance(options, ChrootOptions)
    if not Path(options.python).is_absolute():
        raise ConfigError(f"options.python: {options.python!r} is not an absolute path")
    if context.cgroup_driver is CgroupDriver.SYSTEMD:
        raise Unsupported("this example makes cgroups itself: set runtime.cgroup_driver to cgroupfs")
    state = context.state_root / name
    await to_thread.run_sync(_make, state, context.run_root / "tty")
    launcher = Launcher(name, (options.python, "-I", "-S"), state, context)
    yield ChrootBackend(launcher, await probe(launcher))
