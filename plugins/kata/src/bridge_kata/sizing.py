"""How large a pod's machine is made. Pure.

A kubelet sums the limits of a pod's containers (PodSandboxConfig.linux.resources), and core passes the sums on in five
annotations of the sandbox container. With ``static_sandbox_resource_mgmt`` in its configuration Kata adds them to what an
empty machine gets and boots that size; without, it starts with the empty machine and plugs more in for each container.
A RuntimeClass's overhead is not among them: it stands for the empty machine, which Kata's configuration sizes already.

Sources: Kata's pkg/oci (CalculateSandboxSizing) and runtime-rs' initial_size.rs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

PERIOD, QUOTA, SHARES = (f"io.kubernetes.cri.sandbox-cpu-{name}" for name in ("period", "quota", "shares"))
MEMORY = "io.kubernetes.cri.sandbox-memory"
KEYS = (PERIOD, QUOTA, SHARES, MEMORY)
_SHARES_OF_A_CPU = 1024
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Workload:
    """What a pod's containers add to the empty machine: CPUs, and whole MiB of memory."""

    cpus: float = 0.0
    mib: int = 0


def workload(annotations: Mapping[str, str]) -> Workload:
    """What Kata will make of the sizes in ``annotations``; what is absent or no number counts as none."""
    period, quota, shares, memory = (_number(annotations.get(key, "")) for key in KEYS)
    cpus = quota / period if quota > 0 and period > 0 else 0.0
    if quota < 0 and shares > 0:  # a kubelet that pins CPUs sets no quota; 0 is a pod without a request, which has 2 shares all the same
        cpus = float(math.ceil(shares / _SHARES_OF_A_CPU))
    return Workload(cpus, max(memory, 0) // _MIB)


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return 0


def without_sizes(annotations: Mapping[str, str]) -> dict[str, str]:
    """``annotations`` of a pod whose machine is not to be sized by its containers."""
    return {key: value for key, value in annotations.items() if key not in KEYS}
