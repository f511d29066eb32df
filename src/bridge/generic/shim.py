"""``plugin = "shim"``: a handler on any containerd shim (runtime v2), such as containerd-shim-runc-v2 or one for WebAssembly.

The shim's parts are imported when a handler is opened: a server without such handlers does not pay for them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from anyio import to_thread
from pydantic import BaseModel, ConfigDict, Field, model_validator

from bridge.errors import ConfigError
from bridge.host import process
from bridge.host.cgroup_paths import CgroupDriver
from bridge.plugins import RuntimePlugin, hookimpl
from bridge.ports.host import HostContext, RuntimeTimeouts
from bridge.ports.runtime import Ability, Feature, RuntimeBackend, SandboxKind, Support

if TYPE_CHECKING:
    from bridge.shimv2.runtime import ShimSettings

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TYPE = re.compile(r"(?:[a-z0-9-]+\.)*([a-zA-Z0-9-]+)\.(v[0-9]+)")
Seconds = Annotated[float, Field(gt=0, le=3600)]


class ShimOptions(BaseModel):
    """What `[runtime.handlers.NAME.options]` may hold for a handler with `plugin = "shim"`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = ""
    """The shim's binary: an absolute path, or a name looked up in PATH. Why: unset, the name follows from `runtime_type`."""
    runtime_type: str = "io.containerd.runc.v2"
    """The runtime's type as containerd names it. Why: io.containerd.runc.v2 is containerd-shim-runc-v2; other types follow that rule."""
    sandbox: Literal["namespaces", "container", "vm"] = "namespaces"
    """What a pod is made of: namespaces that the server makes, a container of the runtime's own that comes first, or a virtual machine.
    Why: namespaces need no pause container and no process while a pod has no containers; a kernel of one's own needs more."""
    grouping: Literal["pod", "container"] = "pod"
    """Whether one shim serves a pod, or `start` is run for each container and the shim groups as it likes.
    Why: one shim a pod costs least memory; "container" is for shims that serve one container alone."""
    namespace: str = "cri-bridge"
    """containerd's namespace, by which shims name sockets and state. Why: one of its own keeps apart from a containerd on the same node."""
    binary_name: str = ""
    """The OCI runtime that containerd-shim-runc-v2 calls, for example "crun". Why: unset, the shim's own choice, runc."""
    root: Path | None = None
    """That runtime's state directory. Why: unset, one below the server's run directory, which vanishes at reboot, as it must."""
    config_path: str = ""
    """Path of the runtime's own configuration (runtimeoptions), for shims other than runc's. Why: unset, the shim's compiled-in one."""
    config: str = ""
    """The configuration itself instead of its path. Why: unset; not every shim takes it."""
    cgroup_driver: Literal["systemd", "cgroupfs"] | None = None
    """Overrides `runtime.cgroup_driver` for this handler; `systemd` only where that is the server's too, as pods' cgroups are slices then.
    Why: unset, as the kubelet knows one driver for all handlers."""
    own_cgroups: bool | None = None
    """Whether containers are in the cgroups that their specs name, where the server counts and kills.
    Why: unset, as they are unless `sandbox` is vm."""
    env: dict[str, str] = {}
    """Variables added to the shim's environment (not the containers'). Why: none are needed."""
    debug: bool = False
    """Have the shim log all that it does; the last of it is in `shim.log` of its bundle. Why: errors are logged anyway."""
    trial: bool = True
    """Whether opening the handler runs a trial container with a native program.
    Why: it is the only honest answer to "does it work here?"; false for a runtime of other programs."""
    abilities: dict[Ability, bool] = {}
    """What the runtime can or can't do, whatever it says: `{seccomp = false}`. Why: unset, as a trial and `features` find out."""
    create_timeout: Seconds | None = None
    """Seconds that the shim may take to create a container; a virtual machine boots in it. Why: unset, `runtime.start_timeout`."""
    start_timeout: Seconds | None = None
    """Seconds that the shim's own start and a container's may take. Why: unset, the server's `runtime.start_timeout`."""
    exec_timeout: Seconds | None = None
    """Seconds that the start of an exec may take; not its running time. Why: unset, the server's."""
    delete_timeout: Seconds | None = None
    """Seconds that a delete may take. Why: unset, the server's."""

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if not self.path and not _TYPE.fullmatch(self.runtime_type):
            raise ValueError(f'runtime_type: {self.runtime_type!r} must be like "io.containerd.runc.v2", or path must name the binary')
        if self.config and self.config_path:
            raise ValueError("config: not together with config_path")
        if not self.is_runc and (self.binary_name or self.root is not None):
            raise ValueError("binary_name and root are for io.containerd.runc.v2 alone; other shims take config_path")
        if self.is_runc and (self.config or self.config_path):
            raise ValueError("config_path and config are not for io.containerd.runc.v2, which takes binary_name and root")
        return self

    @property
    def is_runc(self) -> bool:
        """Whether the shim takes the options of containerd's own for runc."""
        return self.runtime_type == "io.containerd.runc.v2"


def binary_name(runtime_type: str) -> str:
    """The binary of a runtime type, as containerd finds it: io.containerd.runc.v2 is containerd-shim-runc-v2."""
    match = _TYPE.fullmatch(runtime_type)
    assert match is not None
    return f"containerd-shim-{match[1]}-{match[2]}"


def find_binary(name: str, search: str, field: str) -> Path:
    """The absolute path of ``name``. Raises ConfigError saying where it was sought."""
    found = shutil.which(name, path=search)
    if found is None:
        where = "" if "/" in name else f" in {search}"
        raise ConfigError(f"options.{field}: there is no executable {name!r}{where}; install it or set the path")
    if not os.path.isabs(found):
        raise ConfigError(f"options.{field}: {name!r} must be an absolute path or a bare name")
    return Path(found)


def settings(name: str, options: ShimOptions, context: HostContext) -> ShimSettings:
    """The SDK's settings for handler ``name``. Raises ConfigError."""
    from bridge.shimv2.backend import events_socket
    from bridge.shimv2.runtime import ShimSettings
    from bridge.shimv2.verbs import ShimBinary

    search = os.environ.get("PATH", _PATH)
    path = find_binary(options.path or binary_name(options.runtime_type), search, "path" if options.path else "runtime_type")
    systemd = context.driver(options.cgroup_driver) is CgroupDriver.SYSTEMD
    timeouts = _timeouts(options, context.timeouts)
    root = context.state_root / name
    owned, packed = _packed(options, root, systemd)
    kind = SandboxKind(options.sandbox)
    return ShimSettings(
        binary=ShimBinary(
            path=path,
            handler=name,
            namespace=options.namespace,
            events=events_socket(context, name),
            env={"PATH": search, **options.env},
            debug=options.debug,
            start_timeout=timeouts.start,
            delete_timeout=timeouts.delete,
        ),
        root=root,
        kind=kind,
        options=packed,
        owned_options=owned,
        systemd_cgroup=systemd,
        per_container=options.grouping == "container",
        own_cgroups=kind is not SandboxKind.VM if options.own_cgroups is None else options.own_cgroups,
        trial=options.trial,
        pipes=options.is_runc and Path(options.binary_name).name not in ("", "runc"),
        timeouts=timeouts,
    )


def _packed(options: ShimOptions, root: Path, systemd: bool) -> tuple[Callable[[int, int], Any] | None, Any]:
    """What goes with every Create: for pipes of another owner, and else."""
    from bridge.shimv2 import encoding

    if options.is_runc:

        def owned(uid: int, gid: int) -> Any:
            state = str(options.root or root / "runc")
            return encoding.runc_options(binary_name=options.binary_name, root=state, systemd_cgroup=systemd, owner=(uid, gid))

        return owned, owned(0, 0)
    if options.config_path or options.config:
        return None, encoding.runtime_options(config_path=options.config_path, config_body=options.config.encode())
    return None, None


def _timeouts(options: ShimOptions, ours: RuntimeTimeouts) -> RuntimeTimeouts:
    wanted = {
        "create": options.create_timeout,
        "start": options.start_timeout,
        "exec": options.exec_timeout,
        "delete": options.delete_timeout,
    }
    return replace(ours, **{key: value for key, value in wanted.items() if value is not None})


@asynccontextmanager
async def open_handler(name: str, options: ShimOptions, context: HostContext) -> AsyncIterator[RuntimeBackend]:
    """Open handler ``name``."""
    from bridge.shimv2.backend import open_backend

    async def claims(features: Mapping[str, Any] | None) -> Mapping[Ability, Feature]:
        return {**await _claimed(options, features, context.timeouts.probe), **_configured(options.abilities)}

    async with open_backend(settings(name, options, context), context, claims=claims) as backend:
        yield backend


def _configured(abilities: Mapping[Ability, bool]) -> dict[Ability, Feature]:
    words = {True: Feature(Support.SUPPORTED, "as configured"), False: Feature(Support.UNSUPPORTED, "switched off in the configuration")}
    return {ability: words[wanted] for ability, wanted in abilities.items()}


async def _claimed(options: ShimOptions, features: Mapping[str, Any] | None, timeout: float) -> Mapping[Ability, Feature]:
    """What the runtime behind the shim says: in the shim's own ``-info``, or asked of the OCI runtime that it calls."""
    from bridge.oci.claims import from_features
    from bridge.oci.probe import KernelFacts, judge

    name = options.binary_name or "runc"
    if features is None and options.is_runc:
        name, features = await _asked(find_binary(name, os.environ.get("PATH", _PATH), "binary_name"), timeout)
    if features is None:
        return {}
    found = judge(from_features(name, features), await to_thread.run_sync(KernelFacts.read), verified="a trial container ran")
    return found | dict.fromkeys((Ability.PAUSE, Ability.CHECKPOINT), Feature(Support.UNSUPPORTED, "not done through a shim"))


async def _asked(binary: Path, timeout: float) -> tuple[str, Mapping[str, Any] | None]:
    """Its version, and its features object, which older ones don't know."""
    version = await process.run([str(binary), "--version"], timeout=timeout)
    features = await process.run([str(binary), "features"], timeout=timeout)
    try:
        found = json.loads(features.stdout)
    except ValueError:
        found = None
    return version.stdout.decode(errors="replace"), found if isinstance(found, dict) and not features.returncode else None


@hookimpl
def bridge_register_runtime() -> RuntimePlugin:
    """Announce the runtime."""
    return RuntimePlugin(name="shim", options=ShimOptions, open=open_handler, api=1)
