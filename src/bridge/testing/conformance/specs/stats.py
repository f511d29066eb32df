"""Statistics, compared with what the workload knows that it uses."""

from __future__ import annotations

import re

from bridge._proto.runtime import v1 as pb
from bridge.ports.runtime import Ability
from bridge.testing.conformance.catalogue import spec
from bridge.testing.conformance.logs import written
from bridge.testing.conformance.stage import Stage

_MIB = 1 << 20
_MEASURED = 90.0
"""Seconds within which a writable layer is measured: files are counted one layer after the other, in the background."""
_HELD = 24 * _MIB
_WORK = (
    "x=$(head -c 25165824 /dev/zero | tr '\\0' x); i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done; times; echo ready; exec 0</dev/null; "
    "while :; do sleep 1; : ${#x}; done"
)


def _value(number: pb.UInt64Value | None) -> int:
    return 0 if number is None else number.value


def _spent(stats: pb.ContainerStats) -> int:
    """CPU time in nanoseconds."""
    return _value(stats.cpu.usage_core_nano_seconds) if stats.cpu else 0


async def _stats(stage: Stage, container: str) -> pb.ContainerStats:
    answer = await stage.cri.runtime.container_stats(pb.ContainerStatsRequest(container_id=container))
    assert answer.stats is not None
    return answer.stats


@spec("CRI ContainerStats (kubelet's summary and evictions)", needs=[Ability.STATS], quick=True)
async def container_stats(stage: Stage) -> None:
    """CPU and memory of a container are what it knows to have used: half of the CPU at least, as a guest counts its own roughly"""
    pod = await stage.pod()
    container = await stage.started(pod, _WORK, memory=256 * _MIB)
    lines = await stage.log(pod, until=lambda lines: b"ready" in written(lines))
    spent = [float(seconds) for seconds in re.findall(r"0m([\d.]+)s", written(lines).decode())]
    used = int(sum(spent[:2]) * 1e9)
    last: pb.ContainerStats | None = None

    async def enough() -> bool:
        nonlocal last
        last = await _stats(stage, container)
        cpu = _value(last.cpu.usage_core_nano_seconds) if last.cpu else 0
        memory = _value(last.memory.working_set_bytes) if last.memory else 0
        return cpu >= used * 0.5 and memory >= _HELD * 0.9

    await stage.until(enough, lambda: f"it used {used / 1e9:.2f} s of CPU and {_HELD} bytes; told is {last}")
    assert last is not None
    assert last.cpu is not None
    assert last.memory is not None
    cpu, memory = _value(last.cpu.usage_core_nano_seconds), _value(last.memory.working_set_bytes)
    stage.note(f"used {used / 1e9:.2f} s of CPU and {_HELD / _MIB:.0f} MiB; told {cpu / 1e9:.2f} s and {memory / _MIB:.0f} MiB")
    assert cpu < used * 3 + 20e9
    assert memory <= 256 * _MIB
    assert last.attributes is not None
    assert last.attributes.id == container


@spec("CRI PodSandboxStats", needs=[Ability.STATS])
async def pod_stats(stage: Stage) -> None:
    """A pod's statistics have its containers, and memory that is no less than theirs"""
    pod = await stage.pod()
    names = {await stage.started(pod, name=name): name for name in ("one", "two")}
    last: pb.LinuxPodSandboxStats | None = None

    async def enough() -> bool:
        nonlocal last
        answer = await stage.cri.runtime.pod_sandbox_stats(pb.PodSandboxStatsRequest(pod_sandbox_id=pod))
        assert answer.stats is not None
        last = answer.stats.linux
        return last is not None and _value(last.memory.usage_bytes if last.memory else None) > 0

    await stage.until(enough, lambda: f"no memory is told of the pod: {last}")
    assert last is not None
    assert {each.attributes.id for each in last.containers if each.attributes} == set(names)
    if stage.node.network:
        assert last.network is not None
        assert last.network.default_interface is not None


@spec("CRI ContainerStats.writable_layer", needs=[Ability.STATS], timeout=150)
async def writable_layer(stage: Stage) -> None:
    """What a container wrote to its root file system is in its statistics"""
    container = await stage.started(await stage.pod())
    await stage.output(container, "dd if=/dev/urandom of=/root/big bs=1M count=8 2>/dev/null; sync")
    last: pb.FilesystemUsage | None = None

    async def counted() -> bool:
        nonlocal last
        last = (await _stats(stage, container)).writable_layer
        return last is not None and _value(last.used_bytes) >= 6 * _MIB  # a sandbox may keep some of it a while

    await stage.until(counted, lambda: f"8 MiB were written; told is {last}", patience=_MEASURED)


@spec("CRI ContainerStats of what does not run", needs=[Ability.STATS])
async def stats_of_the_ended(stage: Stage) -> None:
    """Containers that have not begun or have ended are listed without CPU and memory, and harm no list"""
    pod = await stage.pod()
    created = await stage.create(pod, name="created")
    ended = await stage.started(pod, "true", name="ended")
    running = await stage.started(pod, name="running")
    await stage.exited(ended)
    wanted = pb.ContainerStatsFilter(pod_sandbox_id=pod)
    listed = (await stage.cri.runtime.list_container_stats(pb.ListContainerStatsRequest(filter=wanted))).stats
    found = {each.attributes.id: each for each in listed if each.attributes}
    assert set(found) == {created, ended, running}
    assert [_spent(found[each]) for each in (created, ended)] == [0, 0]
