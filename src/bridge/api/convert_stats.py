"""Statistics to protobuf. What was not measured is left out, as a kubelet expects of a stopped container."""

from __future__ import annotations

from bridge._proto.runtime import v1 as pb
from bridge.api import convert
from bridge.core.entities import Sandbox
from bridge.core.stats import ContainerUsage, PodUsage
from bridge.host.cgroup_stats import CgroupStats, Pressure, Pressures
from bridge.host.net_stats import Interface, NetworkStats

_DEFAULT_INTERFACE = "eth0"
"""What the CNI calls a pod's first interface (network/invoke)."""


def _value(number: int | None) -> pb.UInt64Value | None:
    return None if number is None else pb.UInt64Value(value=number)


def container_version(usage: ContainerUsage) -> object:
    """What is equal while the encoding of ``usage`` is the same."""
    return usage.container.revision, usage.cgroup, usage.nano_cores, usage.layer


def pod_version(usage: PodUsage) -> object:
    """What is equal while the encoding of ``usage`` is the same."""
    return usage.sandbox.revision, usage.cgroup, usage.nano_cores, usage.network, [container_version(one) for one in usage.containers]


def container_stats(usage: ContainerUsage) -> pb.ContainerStats:
    """One container."""
    container, config, look = usage.container, usage.container.config, usage.cgroup
    attributes = pb.ContainerAttributes(
        id=container.id,
        metadata=pb.ContainerMetadata(name=config.metadata.name, attempt=config.metadata.attempt),
        labels=dict(config.labels),
        annotations=dict(config.annotations),
    )
    layer = None if usage.layer is None else convert.filesystem_usage(usage.layer)
    if look is None:
        return pb.ContainerStats(attributes=attributes, writable_layer=layer)
    return pb.ContainerStats(
        attributes=attributes,
        cpu=_cpu(look, usage.nano_cores),
        memory=_memory(look),
        writable_layer=layer,
        swap=_swap(look),
        io=_io(look),
    )


def pod_sandbox_stats(usage: PodUsage) -> pb.PodSandboxStats:
    """One pod with its containers."""
    look = usage.cgroup
    linux = pb.LinuxPodSandboxStats(
        cpu=_cpu(look, usage.nano_cores) if look else None,
        memory=_memory(look) if look else None,
        network=_network(usage.network) if usage.network else None,
        process=_processes(look) if look else None,
        containers=[container_stats(one) for one in usage.containers],
        io=_io(look) if look else None,
    )
    return pb.PodSandboxStats(attributes=_attributes(usage.sandbox), linux=linux)


def _attributes(sandbox: Sandbox) -> pb.PodSandboxAttributes:
    config = sandbox.config
    return pb.PodSandboxAttributes(
        id=sandbox.id,
        metadata=convert.pod_metadata(config),
        labels=dict(config.labels),
        annotations=dict(config.annotations),
    )


def _cpu(look: CgroupStats, rate: int | None) -> pb.CpuUsage | None:
    if look.cpu_ns is None and look.cpu_pressure is None:
        return None
    return pb.CpuUsage(
        timestamp=look.at_ns,
        usage_core_nano_seconds=_value(look.cpu_ns),
        usage_nano_cores=_value(rate),
        psi=_pressures(look.cpu_pressure),
    )


def _memory(look: CgroupStats) -> pb.MemoryUsage | None:
    memory = look.memory
    if memory is None:
        return None
    return pb.MemoryUsage(
        timestamp=look.at_ns,
        working_set_bytes=_value(memory.working_set),
        available_bytes=_value(memory.available),
        usage_bytes=_value(memory.usage),
        rss_bytes=_value(memory.rss),
        page_faults=_value(memory.page_faults),
        major_page_faults=_value(memory.major_page_faults),
        psi=_pressures(look.memory_pressure),
    )


def _processes(look: CgroupStats) -> pb.ProcessUsage | None:
    return None if look.processes is None else pb.ProcessUsage(timestamp=look.at_ns, process_count=_value(look.processes))


def _swap(look: CgroupStats) -> pb.SwapUsage | None:
    swap = look.swap
    if swap is None:
        return None
    room = None if swap.limit is None else max(0, swap.limit - swap.usage)
    return pb.SwapUsage(timestamp=look.at_ns, swap_available_bytes=_value(room), swap_usage_bytes=_value(swap.usage))


def _io(look: CgroupStats) -> pb.IoUsage | None:
    return None if look.io_pressure is None else pb.IoUsage(timestamp=look.at_ns, psi=_pressures(look.io_pressure))


def _pressures(value: Pressures | None) -> pb.PsiStats | None:
    return None if value is None else pb.PsiStats(full=_pressure(value.full), some=_pressure(value.some))


def _pressure(value: Pressure | None) -> pb.PsiData | None:
    if value is None:
        return None
    return pb.PsiData(total=value.total_ns, avg_10=value.avg10, avg_60=value.avg60, avg_300=value.avg300)


def _network(value: NetworkStats) -> pb.NetworkUsage:
    first = [one for one in value.interfaces if one.name == _DEFAULT_INTERFACE] or list(value.interfaces[:1])
    return pb.NetworkUsage(
        timestamp=value.at_ns,
        default_interface=_interface(first[0]) if first else None,
        interfaces=[_interface(one) for one in value.interfaces if one not in first],
    )


def _interface(value: Interface) -> pb.NetworkInterfaceUsage:
    return pb.NetworkInterfaceUsage(
        name=value.name,
        rx_bytes=_value(value.rx_bytes),
        rx_errors=_value(value.rx_errors),
        tx_bytes=_value(value.tx_bytes),
        tx_errors=_value(value.tx_errors),
    )
