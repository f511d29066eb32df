"""The RuntimeClass of a handler with the overhead that was measured (KEP-688). Pure."""

from __future__ import annotations

import math

from bridge.testing.conformance.results import Costs

_MIB = 1 << 20


def runtime_class(handler: str, costs: Costs) -> str:
    """A manifest for ``kubectl apply``; "" when nothing was measured.

    Memory is rounded up to whole MiB and CPU to whole millicores; one of less than half a millicore is left out.
    """
    if costs.memory_bytes is None:
        return ""
    memory, cpu = costs.memory_bytes / _MIB, costs.cpu_millicores or 0.0
    lines = []
    if costs.start_ms is not None:
        run = f", {costs.run_ms:.0f} ms of it RunPodSandbox" if costs.run_ms is not None else ""
        lines.append(f"# A pod of one container starts in {costs.start_ms:.0f} ms (p50 of {costs.pods}){run}.")
    lines.append(f"# Beside its workload it takes {memory:.2f} MiB (PSS), and {cpu:.1f} millicores while idle.")
    lines += ["apiVersion: node.k8s.io/v1", "kind: RuntimeClass", "metadata:", f"  name: {handler}", f"handler: {handler}"]
    lines += ["overhead:", "  podFixed:", f'    memory: "{max(1, math.ceil(memory))}Mi"']
    if cpu >= 0.5:
        lines.append(f'    cpu: "{math.ceil(cpu)}m"')
    return "\n".join(lines) + "\n"
