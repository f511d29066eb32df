"""What the spec tests build from: a host, a pod, an image and a container, each with only what a test wants different."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from bridge.core import volumes
from bridge.core.entities import Sandbox, SandboxState, User
from bridge.core.model import (
    ContainerConfig,
    ContainerMetadata,
    ContainerSecurity,
    ImageSpec,
    NamespaceMode,
    NamespaceOptions,
    PodConfig,
    PodMetadata,
    SandboxSecurity,
)
from bridge.core.spec import ContainerInputs, HostFacts, SpecSettings
from bridge.core.spec_inputs import Volume
from bridge.host.facts import CAPABILITIES
from bridge.ports.images import Image, ImageConfig

FACTS = HostFacts(
    capabilities=frozenset(CAPABILITIES),
    seccomp=True,
    apparmor=False,
    selinux=False,
    architecture="amd64",
    cgroup_v2=True,
    oom_score_adj=0,
    can_lower_oom_score=True,
    hugepage_sizes=("2MB",),
    swap_accounting=True,
    hostname="node-1",
)
SETTINGS = SpecSettings()
PINS = {"net": "/run/s/net", "ipc": "/run/s/ipc", "uts": "/run/s/uts"}


def facts(**changes: Any) -> HostFacts:
    return dataclasses.replace(FACTS, **changes)


def sandbox(*, privileged: bool = False, pid: NamespaceMode = NamespaceMode.CONTAINER, **changes: Any) -> Sandbox:
    """A ready pod with pinned namespaces, whose containers have PID namespaces of their own."""
    security = SandboxSecurity(namespaces=NamespaceOptions(pid=pid), privileged=privileged)
    config = PodConfig(PodMetadata("web", "uid-1", "default"), hostname="web-0", security=security)
    pod = Sandbox("sandbox-1", config, "runc", "", SandboxState.READY, 0, "boot", namespaces=PINS, cgroup_parent="/pods/web")
    return dataclasses.replace(pod, **changes)


def image(**config: Any) -> Image:
    return Image("sha256:" + "a" * 64, (), (), 0, False, ImageConfig(**{"cmd": ("server",), **config}), ())


def config(**changes: Any) -> ContainerConfig:
    return ContainerConfig(**{"metadata": ContainerMetadata("app"), "image": ImageSpec("busybox:1"), **changes})


def as_asked(config: ContainerConfig) -> tuple[Volume, ...]:
    """The volumes of host paths that are there and need no prepared copy."""
    volumes.check(config)
    return tuple(Volume(each.host_path, volumes.host_options(each, f"config.mounts[{i}]")) for i, each in enumerate(config.mounts))


def inputs(*, security: ContainerSecurity | None = None, **changes: Any) -> ContainerInputs:
    """Inputs of one container; ``security`` is a short cut into its config."""
    given = ContainerInputs("container-1", sandbox(), config(), image(), Path("/bundle/rootfs"), Path("/run/s"), User(), "/root")
    given = dataclasses.replace(given, **changes)
    if not given.volumes:
        given = dataclasses.replace(given, volumes=as_asked(given.config))
    if security is None:
        return given
    return dataclasses.replace(given, config=dataclasses.replace(given.config, security=security))
