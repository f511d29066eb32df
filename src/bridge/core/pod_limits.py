"""What a pod as a whole may use: CRI's LinuxPodSandboxConfig.resources and overhead, on the pod's cgroup if that is the server's own.

A kubelet makes its pods' cgroups and limits them itself; nothing is written there.
"""

from __future__ import annotations

from anyio.to_thread import run_sync

from bridge.core.entities import Sandbox
from bridge.core.model import Resources
from bridge.host import cgroup_limits
from bridge.host.cgroup_limits import PodLimits


async def apply(sandbox: Sandbox) -> None:
    """Set the sum of the pod's resources and overhead on its cgroup, if the server made that. Raises HostError."""
    if sandbox.cgroup_owned and (sandbox.resources or sandbox.overhead):
        await run_sync(cgroup_limits.apply, sandbox.cgroup_parent, of(sandbox))


def resources(sandbox: Sandbox) -> Resources:
    """``of`` as resources, as far as the pod has any."""
    found = of(sandbox)
    return Resources(
        cpu_shares=found.shares,
        cpu_quota=max(found.quota, 0),
        cpu_period=found.period if found.quota > 0 else 0,
        memory_limit_in_bytes=max(found.memory, 0),
    )


def of(sandbox: Sandbox) -> PodLimits:
    """Resources and overhead together; what the resources leave without a limit has none."""
    resources, overhead = sandbox.resources or Resources(), sandbox.overhead or Resources()
    period = resources.cpu_period or 100_000
    extra = overhead.cpu_quota * period // (overhead.cpu_period or 100_000) if overhead.cpu_quota > 0 else 0
    return PodLimits(
        shares=resources.cpu_shares and resources.cpu_shares + overhead.cpu_shares,
        quota=resources.cpu_quota + extra if resources.cpu_quota > 0 else -1,
        period=period,
        memory=resources.memory_limit_in_bytes + max(overhead.memory_limit_in_bytes, 0) if resources.memory_limit_in_bytes > 0 else -1,
    )
