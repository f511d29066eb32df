"""Limits of memory and processes, and what becomes of a container that goes beyond."""

from __future__ import annotations

import re
from pathlib import Path

from bridge._proto.runtime import v1 as pb
from bridge.host import cgroups
from bridge.ports.runtime import Ability
from bridge.testing.conformance.catalogue import spec
from bridge.testing.conformance.stage import Stage

_MIB = 1 << 20
LIMIT = 64 * _MIB


async def limited(stage: Stage) -> str:
    """A pod for a container of LIMIT; the pod has twice that, which is what holds a sandbox that its runtime limits as a whole."""
    config = stage.pod_config()
    assert config.linux is not None
    config.linux.resources = pb.LinuxContainerResources(memory_limit_in_bytes=2 * LIMIT)
    return await stage.pod(config=config)


def killed(status: pb.ContainerStatus) -> None:
    """It must have been ended for its memory."""
    assert (status.reason, status.exit_code) == ("OOMKilled", 137), f"{status.reason} {status.exit_code} {status.message}"


@spec("CRI ContainerStatus.reason OOMKilled (kubelet)", needs=[Ability.CONTAINER_LIMITS], quick=True)
async def oom_is_told(stage: Stage) -> None:
    """A container that takes more memory than it may is ended, and the reason is OOMKilled"""
    neighbour = await stage.started(await stage.pod())
    container = await stage.started(await limited(stage), "exec tail /dev/zero", memory=LIMIT)
    killed(await stage.exited(container))
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


@spec("CRI LinuxContainerResources.memory_limit_in_bytes, cpu_quota: seen from inside", needs=[Ability.CONTAINER_LIMITS])
async def limits_hold(stage: Stage) -> None:
    """A container within its limit runs, and half a CPU is not much more than that"""
    pod = await stage.pod()
    resources = pb.LinuxContainerResources(memory_limit_in_bytes=256 * _MIB, cpu_period=100000, cpu_quota=50000)
    security = pb.LinuxContainerSecurityContext(namespace_options=stage.namespaces())
    linux = pb.LinuxContainerConfig(resources=resources, security_context=security)
    spin = (
        "end=$(($(date +%s)+4)); while [ $(date +%s) -lt $end ]; do i=0; while [ $i -lt 5000 ]; do i=$((i+1)); done; done; times; echo done"
    )
    container = await stage.started(pod, f"dd if=/dev/zero of=/dev/null bs=64M count=1 2>/dev/null && {spin}", linux=linux)
    assert (await stage.exited(container)).exit_code == 0
    text = b"\n".join(line.text for line in await stage.log(pod, until=lambda lines: any(line.text == b"done" for line in lines))).decode()
    spent = sum(int(minutes) * 60 + float(seconds) for minutes, seconds in re.findall(r"(\d+)m([\d.]+)s", text))
    stage.note(f"4 s of spinning with half a CPU took {spent:.1f} s of CPU")
    assert spent < 3.5, f"half a CPU for 4 s was {spent} s of CPU"
