"""Where the time of a cycle goes on our side: the server's own trace of each pod (`cri-bridge trace`), as a table."""

from __future__ import annotations

from bridge._proto.bridge.admin import v1 as admin
from bridge.cli.waterfall import draw

from .report import Table
from .servers import Running

_ADMIN = "/bridge.admin.v1.Admin/"


def table(rounds: int) -> Table:
    """The empty table."""
    return Table(f"Where cri-bridge's time goes, p50 of {rounds}", "ms", ["cri-bridge"], shares=(0.5, 0.95))


async def record(server: Running, sandbox: str, into: Table) -> None:
    """Add the pod's spans so far; the last note is their picture. Repeated names within one request are added up."""
    request = admin.TraceRequest(pod_sandbox_id=sandbox)
    trace = await server.rpc.call("Trace", request, admin.TraceResponse, service=_ADMIN)
    sums: dict[str, float] = {}
    path: list[str] = []
    for span in trace.spans:
        path[span.depth :] = [span.name]
        label = f"{path[0].split()[0]}" if span.depth == 0 else f"{path[0].split()[0]}: {' › '.join(path[1:])}"
        sums[label] = sums.get(label, 0.0) + span.duration / 1e6
    for label, duration in sums.items():
        into.add(label, server.name, duration)
    picture = "\n".join(draw(trace.spans))
    into.notes[:] = [f"The last pod, drawn by `cri-bridge trace`:\n\n```\n{picture}\n```"]
