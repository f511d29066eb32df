"""Kata's shim, driven by the kit for containerd's shim API: one shim a pod, which serves all of its containers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from bridge.host.cgroup_paths import CgroupDriver
from bridge.ports.host import HostContext
from bridge.ports.runtime import RuntimeBackend, SandboxKind, SandboxSpec
from bridge.shimv2.backend import events_socket, open_backend
from bridge.shimv2.encoding import runtime_options
from bridge.shimv2.runtime import ShimSettings
from bridge.shimv2.sandbox import pod_bundle
from bridge.shimv2.verbs import ShimBinary
from bridge_kata import probe
from bridge_kata.options import KataOptions

_OLD_OPTIONS = "cri.runtimeoptions.v1.Options"


def settings(name: str, path: Path, env: Mapping[str, str], options: KataOptions, context: HostContext, version: str) -> ShimSettings:
    """What the kit needs to know. Kata's containers have no cgroups of the host's: the machine has."""
    config = options.config_path
    binary = ShimBinary(
        path=path,
        handler=name,
        namespace="cri-bridge",
        events=events_socket(context, name),
        env=env,
        debug=options.debug,
        start_timeout=options.start_timeout,
        delete_timeout=options.delete_timeout,
    )
    return ShimSettings(
        binary=binary,
        root=context.state_root / name,
        kind=SandboxKind.VM,
        options=None if config is None else _told(config, old=probe.is_old(version)),
        systemd_cgroup=context.cgroup_driver is CgroupDriver.SYSTEMD,
        own_cgroups=False,
        trial=False,
        timeouts=context.timeouts,
    )


def _told(config_path: Path, *, old: bool) -> Any:
    """Where the configuration is, with every Create. Kata 1.x knows the message by its older name alone, and refuses the other."""
    given = runtime_options(config_path=str(config_path))
    if old:
        given.type_url = _OLD_OPTIONS
    return given


def open_inner(
    name: str, path: Path, env: Mapping[str, str], options: KataOptions, context: HostContext, version: str
) -> AbstractAsyncContextManager[RuntimeBackend]:
    """Serve the shim while the block is open."""
    return open_backend(settings(name, path, env, options, context, version), context)


def bundle(spec: SandboxSpec) -> Path:
    """Where the kit has the sandbox container's bundle."""
    return pod_bundle(spec)
