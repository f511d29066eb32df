"""What other servers tell by ListPodSandboxMetrics, as facts read from their sources, with the type in which each value is sent.

CRI-O f954a17e (1.37-dev, 21 August 2026): internal/lib/statsserver/descriptors.go and *_metrics_linux.go. containerd 301026e5 (2.4-dev,
22 August 2026): internal/cri/server/list_metric_descriptors.go and list_pod_sandbox_metrics_linux.go. containerd 1.x has none.
"""

from __future__ import annotations

BASE = frozenset(("pod", "namespace", "container", "id", "image"))
COUNTERS = {
    "container_cpu_user_seconds_total": (),
    "container_cpu_system_seconds_total": (),
    "container_cpu_usage_seconds_total": ("cpu",),
    "container_cpu_cfs_periods_total": (),
    "container_cpu_cfs_throttled_periods_total": (),
    "container_cpu_cfs_throttled_seconds_total": (),
    "container_fs_reads_bytes_total": ("device",),
    "container_fs_reads_total": ("device",),
    "container_fs_writes_bytes_total": ("device",),
    "container_fs_writes_total": ("device",),
    "container_blkio_device_usage_total": ("device", "major", "minor", "operation"),
    "container_memory_failcnt": (),
    "container_memory_failures_total": ("failure_type", "scope"),
    "container_network_receive_bytes_total": ("interface",),
    "container_network_receive_packets_total": ("interface",),
    "container_network_receive_packets_dropped_total": ("interface",),
    "container_network_receive_errors_total": ("interface",),
    "container_network_transmit_bytes_total": ("interface",),
    "container_network_transmit_packets_total": ("interface",),
    "container_network_transmit_packets_dropped_total": ("interface",),
    "container_network_transmit_errors_total": ("interface",),
    "container_oom_events_total": (),
}
GAUGES = {
    "container_memory_cache": (),
    "container_memory_rss": (),
    "container_memory_kernel_usage": (),
    "container_memory_mapped_file": (),
    "container_memory_swap": (),
    "container_memory_usage_bytes": (),
    "container_memory_max_usage_bytes": (),
    "container_memory_working_set_bytes": (),
    "container_file_descriptors": (),
    "container_processes": (),
    "container_sockets": (),
    "container_threads": (),
    "container_threads_max": (),
    "container_ulimits_soft": ("ulimit",),
    "container_last_seen": (),
    "container_start_time_seconds": (),
    "container_spec_cpu_period": (),
    "container_spec_cpu_shares": (),
    "container_spec_memory_limit_bytes": (),
    "container_spec_memory_reservation_limit_bytes": (),
    "container_spec_memory_swap_limit_bytes": (),
}
FILE_SYSTEM = ("container_fs_inodes_free", "container_fs_inodes_total", "container_fs_limit_bytes", "container_fs_usage_bytes")
CRIO_ALONE = {
    "container_hugetlb_usage_bytes": ("gauge", ("pagesize",)),
    "container_hugetlb_max_usage_bytes": ("gauge", ("pagesize",)),
    "container_spec_cpu_quota": ("gauge", ()),
    **{
        f"container_pressure_{what}_{how}_seconds_total": ("counter", ())
        for what in ("cpu", "memory", "io")
        for how in ("stalled", "waiting")
    },
}
CONTAINERD_ALONE = {
    "container_memory_total_active_file_bytes": ("gauge", ()),
    "container_memory_total_inactive_file_bytes": ("gauge", ()),
}
_BOTH = {name: ("counter", labels) for name, labels in COUNTERS.items()} | {name: ("gauge", labels) for name, labels in GAUGES.items()}
CRIO = _BOTH | dict.fromkeys(FILE_SYSTEM, ("gauge", ())) | CRIO_ALONE
CONTAINERD = (
    _BOTH | dict.fromkeys(FILE_SYSTEM, ("gauge", ("device",))) | CONTAINERD_ALONE | {"container_cpu_usage_seconds_total": ("counter", ())}
)
"""Name → type and the labels that follow those of every metric."""
CRITEST_SPARES = {
    *CRIO_ALONE,
    "container_spec_memory_reservation_limit_bytes",
    "container_ulimits_soft",
    "container_blkio_device_usage_total",
    "container_fs_reads_bytes_total",
    "container_fs_reads_total",
    "container_fs_writes_bytes_total",
    "container_fs_writes_total",
}
"""Of CRI-O's names, those that critest (cri-tools, August 2026) does not insist on: what some servers don't have, what needs a disk."""
CRITEST = frozenset(CRIO) - CRITEST_SPARES
DIFFERENT = {
    "CRI-O": dict.fromkeys(FILE_SYSTEM, "the file system's device is told as containerd and cAdvisor do"),
    "containerd": {"container_cpu_usage_seconds_total": "the CPU is told ('total') as CRI-O and cAdvisor do"},
}
"""Where the two differ from one another: which one is followed, and why."""
