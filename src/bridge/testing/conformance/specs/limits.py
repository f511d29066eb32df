"""Limits of memory and processes, and what becomes of a container that goes beyond."""

from __future__ import annotations

import re
import time
from pathlib import Path

import anyio

from bridge._proto.runtime import v1 as pb
from bridge.host import cgroups
from bridge.host.cgroup_paths import pod_cgroup
from bridge.ports.runtime import Ability
from bridge.testing.conformance.catalogue import spec
from bridge.testing.conformance.stage import RUNNING, Stage

_MIB = 1 << 20
LIMIT = 64 * _MIB
_SPIN_SECONDS = 4.0


async def limited(stage: Stage) -> str:
    """A pod for a container of LIMIT; the pod has twice that, which is what holds a sandbox that its runtime limits as a whole."""
    config = stage.pod_config()
    assert config.linux is not None
    config.linux.resources = pb.LinuxContainerResources(memory_limit_in_bytes=2 * LIMIT)
    return await stage.pod(config=config)


def killed(status: pb.ContainerStatus) -> None:
    """It must have been ended for its memory."""
    assert (status.reason, status.exit_code) == ("OOMKilled", 137), f"{status.reason} {status.exit_code} {status.message}"


@spec("CRI ContainerStatus.reason OOMKilled (kubelet)", quick=True)
async def oom_is_told(stage: Stage) -> None:
    """A container that takes more memory than it may is ended, and the reason is OOMKilled"""
    neighbour = await stage.started(await stage.pod())
    container = await stage.started(await limited(stage), "exec tail /dev/zero", memory=LIMIT)
    killed(await stage.exited(container))
    assert await stage.output(neighbour, "echo alive") == "alive"


@spec("CRI LinuxContainerResources.memory_limit_in_bytes", needs=[Ability.CONTAINER_LIMITS])
async def container_limit_holds(stage: Stage) -> None:
    """A container that takes more memory than it may is ended alone: its neighbour in the pod goes on"""
    pod = await limited(stage)
    neighbour = await stage.started(pod, name="neighbour")
    container = await stage.started(pod, "exec tail /dev/zero", memory=LIMIT)
    killed(await stage.exited(container))
    assert (await stage.status(neighbour)).state is RUNNING
    assert await stage.output(neighbour, "echo alive") == "alive"


@spec("CRI UpdateContainerResources; ContainerStatus.resources", needs=[Ability.UPDATE], quick=True)
async def resources_are_updated(stage: Stage) -> None:
    """New limits are in force at once, and told"""
    pod = await stage.pod()
    container = await stage.started(pod, memory=64 * _MIB)
    wanted = pb.LinuxContainerResources(memory_limit_in_bytes=128 * _MIB, cpu_period=100000, cpu_quota=50000, cpu_shares=200)
    await stage.cri.runtime.update_container_resources(pb.UpdateContainerResourcesRequest(container_id=container, linux=wanted))
    told = (await stage.status(container)).resources
    assert told is not None
    assert told.linux is not None
    assert (told.linux.memory_limit_in_bytes, told.linux.cpu_quota) == (128 * _MIB, 50000)
    kernel = _memory_limit((await stage.info(container)).get("pid"), container)
    if kernel is None:
        stage.note("no process of the container's own cgroup is known: its limit was not compared with the kernel's")
    else:
        assert kernel == 128 * _MIB, f"the kernel's limit is {kernel}"


def _memory_limit(pid: int | None, container: str) -> int | None:
    """The kernel's limit of the container's own cgroup, if its process is in one that is the container's."""
    if not pid:
        return None
    directories = cgroups.of_pid(pid)
    directory = cgroups.controller_directory(directories, "memory")
    if directory is None or not re.search(container[:12], str(directory)):
        return None
    return int(Path(directory, "memory.max" if cgroups.is_v2() else "memory.limit_in_bytes").read_text())


@spec("CRI LinuxContainerResources.cpu_quota, cpu_period")
async def cpu_quota_holds(stage: Stage) -> None:
    """A pod and a container of half a CPU don't get much more than that, as the kernel counts"""
    half = pb.LinuxContainerResources(memory_limit_in_bytes=4 * LIMIT, cpu_period=100000, cpu_quota=50000)
    config = stage.pod_config()
    assert config.linux is not None
    config.linux.resources = half
    pod = await stage.pod(config=config)
    security = pb.LinuxContainerSecurityContext(namespace_options=stage.namespaces())
    linux = pb.LinuxContainerConfig(resources=half, security_context=security)
    before, began = _cpu_seconds(config.linux.cgroup_parent, stage), time.monotonic()
    container = await stage.started(pod, "while :; do :; done", linux=linux)
    await anyio.sleep(_SPIN_SECONDS)
    spent, passed = _cpu_seconds(config.linux.cgroup_parent, stage) - before, time.monotonic() - began
    await stage.stop(container, 0)
    stage.note(f"half a CPU for {passed:.1f} s was {spent:.1f} s of CPU")
    assert 0 < spent < passed * 0.75, f"half a CPU for {passed:.1f} s was {spent:.1f} s of CPU"


def _cpu_seconds(cgroup: str, stage: Stage) -> float:
    """What all in the pod's cgroup have spent."""
    layout, path = cgroups.layout(), pod_cgroup(cgroup, stage.node.pod_cgroups.driver)
    if layout.is_v2:
        words = (layout.mounts[""].directory(path) / "cpu.stat").read_text().split()
        return int(words[words.index("usage_usec") + 1]) / 1e6
    return int((layout.mounts["cpuacct"].directory(path) / "cpuacct.usage").read_text()) / 1e9
