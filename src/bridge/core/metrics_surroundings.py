"""The rows of what a container has around it: file system, disks, processes, limits; and those of a pod's network."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bridge.core.metric_groups import Group
from bridge.core.metrics_table import ContainerMetric, Kind, PodMetric, Seen, Value, row, seconds, single
from bridge.core.model import Resources
from bridge.host.cgroup_details import DeviceIo
from bridge.host.filesystems import Room, name_of
from bridge.host.net_stats import Interface
from bridge.host.process_counts import ProcessCounts

_UNLIMITED = 1 << 62
"""From here on a limit of memory is none (cgroup v1 rounds the largest number to whole pages)."""


def _room(read: Callable[[Room], int | None]) -> Callable[[Seen], Iterable[Value]]:
    def values(seen: Seen) -> Iterable[Value]:
        number = None if seen.room is None else read(seen.room)
        return () if seen.room is None or number is None else (Value((seen.room.device,), number, seen.room.at_ns),)

    return values


def _layer(seen: Seen) -> Iterable[Value]:
    layer, room = seen.layer, seen.room
    return () if layer is None or room is None else (Value((room.device,), layer.used_bytes, layer.at_ns),)


def _io(operation: str, read: Callable[[DeviceIo], int]) -> Callable[[Seen], Iterable[Value]]:
    return lambda seen: [
        Value((name_of((each.major, each.minor), seen.names),), read(each), seen.look.at_ns)
        for each in _devices(seen)
        if each.operation == operation
    ]


def _device_usage(seen: Seen) -> Iterable[Value]:
    return [
        Value(
            (name_of((each.major, each.minor), seen.names), str(each.major), str(each.minor), each.operation),
            each.bytes,
            seen.look.at_ns,
        )
        for each in _devices(seen)
    ]


def _devices(seen: Seen) -> Iterable[DeviceIo]:
    return () if seen.details is None else seen.details.io


def _counted(read: Callable[[ProcessCounts], int | None]) -> Callable[[Seen], Iterable[Value]]:
    return single(lambda seen: None if seen.processes is None else read(seen.processes))


def _threads_max(seen: Seen) -> int | None:
    """0 without a limit, as everybody has it; nothing where nobody counts."""
    return None if seen.details is None or seen.look.processes is None else seen.details.threads_limit or 0


def _open_files(seen: Seen) -> Iterable[Value]:
    limit = None if seen.processes is None else seen.processes.open_files_limit
    return () if limit is None else (Value(("max_open_files",), limit, seen.look.at_ns),)


def _spec(read: Callable[[Resources], int | None]) -> Callable[[Seen], Iterable[Value]]:
    return single(lambda seen: None if seen.resources is None else read(seen.resources))


def _bytes(limit: int) -> int:
    """0 for none."""
    return limit if 0 < limit < _UNLIMITED else 0


def _reservation(resources: Resources) -> int | None:
    """What is kept from reclaim, which only v2 has and only ``unified`` asks for."""
    text = resources.unified.get("memory.min", "0")
    return _bytes(int(text)) if text.isdigit() else None


def _network(name: str, text: str, read: Callable[[Interface], int]) -> PodMetric:
    return PodMetric(Group.NETWORK, f"container_network_{name}_total", Kind.COUNTER, text, ("interface",), read)


_C, _G = Kind.COUNTER, Kind.GAUGE
_DISK, _IO, _PROCESS, _SPEC = Group.DISK, Group.DISK_IO, Group.PROCESS, Group.SPEC
_DEVICE = ("device",)

SURROUNDINGS: tuple[ContainerMetric, ...] = (
    row(
        _DISK,
        _G,
        "fs_inodes_free",
        "Inodes left of the file system with the writable layer.",
        _room(lambda room: room.free_inodes),
        _DEVICE,
    ),
    row(_DISK, _G, "fs_inodes_total", "Inodes of the file system with the writable layer.", _room(lambda room: room.inodes), _DEVICE),
    row(_DISK, _G, "fs_limit_bytes", "Size of the file system with the writable layer.", _room(lambda room: room.total_bytes), _DEVICE),
    row(_DISK, _G, "fs_usage_bytes", "Size of the writable layer.", _layer, _DEVICE),
    row(_IO, _C, "fs_reads_bytes_total", "Bytes read from a device.", _io("Read", lambda io: io.bytes), _DEVICE),
    row(_IO, _C, "fs_reads_total", "Reads of a device.", _io("Read", lambda io: io.count), _DEVICE),
    row(_IO, _C, "fs_writes_bytes_total", "Bytes written to a device.", _io("Write", lambda io: io.bytes), _DEVICE),
    row(_IO, _C, "fs_writes_total", "Writes to a device.", _io("Write", lambda io: io.count), _DEVICE),
    row(
        _IO,
        _C,
        "blkio_device_usage_total",
        "Bytes to and from a device, by operation.",
        _device_usage,
        (*_DEVICE, "major", "minor", "operation"),
    ),
    row(_PROCESS, _G, "processes", "Processes.", _counted(lambda counts: counts.processes)),
    row(_PROCESS, _G, "file_descriptors", "Files that processes have open.", _counted(lambda counts: counts.descriptors)),
    row(_PROCESS, _G, "sockets", "Sockets that processes have open.", _counted(lambda counts: counts.sockets)),
    row(_PROCESS, _G, "threads", "Threads of all processes.", single(lambda seen: seen.look.processes)),
    row(_PROCESS, _G, "threads_max", "How many threads there may be; 0 without a limit.", single(_threads_max)),
    row(_PROCESS, _G, "ulimits_soft", "Soft limits of the first process; absent without one.", _open_files, ("ulimit",)),
    row(_SPEC, _G, "spec_cpu_period", "Length of a period of the CPU quota, in µs.", _spec(lambda limits: limits.cpu_period or None)),
    row(
        _SPEC,
        _G,
        "spec_cpu_quota",
        "CPU time in each period, in µs.",
        _spec(lambda limits: limits.cpu_quota if limits.cpu_quota > 0 else None),
    ),
    row(_SPEC, _G, "spec_cpu_shares", "Weight among those that want a CPU.", _spec(lambda limits: limits.cpu_shares or None)),
    row(_SPEC, _G, "spec_memory_limit_bytes", "Limit of memory; 0 for none.", _spec(lambda limits: _bytes(limits.memory_limit_in_bytes))),
    row(_SPEC, _G, "spec_memory_reservation_limit_bytes", "Memory that is never reclaimed; 0 for none.", _spec(_reservation)),
    row(
        _SPEC,
        _G,
        "spec_memory_swap_limit_bytes",
        "Limit of memory and swap together; 0 for none.",
        _spec(lambda limits: _bytes(limits.memory_swap_limit_in_bytes)),
    ),
    row(
        _SPEC,
        _G,
        "start_time_seconds",
        "Unix time of the container's start.",
        single(lambda seen: seconds(seen.started_ns)),
    ),
)

NETWORK: tuple[PodMetric, ...] = (
    _network("receive_bytes", "Bytes received.", lambda interface: interface.rx_bytes),
    _network("receive_packets", "Packets received.", lambda interface: interface.rx_packets),
    _network("receive_packets_dropped", "Packets that came and were dropped.", lambda interface: interface.rx_dropped),
    _network("receive_errors", "Errors while receiving.", lambda interface: interface.rx_errors),
    _network("transmit_bytes", "Bytes sent.", lambda interface: interface.tx_bytes),
    _network("transmit_packets", "Packets sent.", lambda interface: interface.tx_packets),
    _network("transmit_packets_dropped", "Packets that were dropped instead of sent.", lambda interface: interface.tx_dropped),
    _network("transmit_errors", "Errors while sending.", lambda interface: interface.tx_errors),
)
