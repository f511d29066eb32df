"""What a node pays in memory for being able to run pods: PSS of the server with its monitor or shims."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import anyio

from .report import Table
from .servers import Running
from .workload import remove_pod, run_pod

_IDLE = ("sleep", "86400")
_SETTLE = 5.0  # seconds for collectors and shims to come to rest after the last start


def pss_mib(pid: int, field: str = "Pss") -> float:
    """Proportional set size of a process in MiB; ``Pss_Anon`` is the part that is no file. Source: proc_pid_smaps(5), smaps_rollup."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    if found is None:
        raise RuntimeError(f"no {field} in /proc/{pid}/smaps_rollup")
    return int(found.group(1)) / 1024


async def measure(servers: Sequence[Running], *, counts: Sequence[int] = (0, 20, 50)) -> Table:
    """PSS at each number of pods, of one container each, and the slope a pod between the first and the last."""
    table = Table("Memory of server and monitor or shims (PSS)", "MiB", [server.name for server in servers], shares=())
    for server in servers:
        sandboxes: list[str] = []
        base: dict[str, float] = {}
        for count in counts:
            while len(sandboxes) < count:
                _, sandbox, _ = await run_pod(server, len(sandboxes), 1, _IDLE)
                sandboxes.append(sandbox)
            await anyio.sleep(_SETTLE)
            pids = server.workspace.processes(server.name)
            total = {field: sum(pss_mib(pid, field) for pid in pids) for field in ("Pss", "Pss_Anon")}
            base = base if sandboxes else total
            table.add(f"{count} pods", server.name, total["Pss"])
            table.add(f"{count} pods: without files", server.name, total["Pss_Anon"])
            table.add(f"{count} pods: processes", server.name, len(pids))
        if sandboxes:
            table.add("a pod more", server.name, (total["Pss"] - base["Pss"]) / len(sandboxes))
            table.add("a pod more: without files", server.name, (total["Pss_Anon"] - base["Pss_Anon"]) / len(sandboxes))
        for sandbox in sandboxes:
            await remove_pod(server, sandbox)
    table.notes.append(
        "Of the processes that are not in a pod's cgroup. Containers and pause containers are not counted. "
        "PSS shares a page among all that map it, this benchmark's own interpreter and any other program on the machine included: "
        "with few pods that moves more than they do, so the memory that is no file (Pss_Anon) is given too."
    )
    return table
