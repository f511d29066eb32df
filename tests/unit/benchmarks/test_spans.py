"""The server's trace as rows of a table."""

from pathlib import Path
from typing import Any, cast

from benchmarks.rpc import Rpc
from benchmarks.servers import Running
from benchmarks.spans import record, table
from benchmarks.workspace import Workspace
from bridge._proto.bridge.admin import v1 as admin


class OneTrace:
    """Answers Trace, and nothing else."""

    async def call(self, method: str, request: admin.TraceRequest, answer: type[Any], *, service: str) -> admin.TraceResponse:
        assert (service, method, request.pod_sandbox_id, answer) == ("/bridge.admin.v1.Admin/", "Trace", "s1", admin.TraceResponse)
        made = [
            ("RunPodSandbox", 0, 20),
            ("journal", 1, 1),
            ("cni add", 1, 10),
            ("journal", 1, 2),
            ("CreateContainer main", 0, 4),
            ("x", 1, 3),
        ]
        return admin.TraceResponse(spans=[admin.Span(name=name, depth=depth, duration=ms * 1_000_000) for name, depth, ms in made])


async def test_rows_are_steps_below_their_request_and_repeated_steps_are_added_up() -> None:
    server = Running("cri-bridge", "cri-bridge 0", cast("Rpc", OneTrace()), Path("/nowhere"), cast("Workspace", None))
    into = table(1)
    await record(server, "s1", into)
    assert {label: samples["cri-bridge"] for label, samples in into.rows.items()} == {
        "RunPodSandbox": [20.0],
        "RunPodSandbox: journal": [3.0],
        "RunPodSandbox: cni add": [10.0],
        "CreateContainer": [4.0],
        "CreateContainer: x": [3.0],
    }
    assert len(into.notes) == 1
    assert "CreateContainer main" in into.notes[0]
