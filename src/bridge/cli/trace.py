"""``cri-bridge trace POD``: where the start of a pod spent its time."""

from __future__ import annotations

import argparse
import shutil

from bridge._proto.bridge.admin import v1 as admin
from bridge.cli.connection import ask
from bridge.cli.output import as_json
from bridge.cli.waterfall import draw


def run(arguments: argparse.Namespace) -> int:
    """Draw the trace, or print its spans as JSON (start in ns since the epoch, duration in ns)."""
    request = admin.TraceRequest(pod_sandbox_id=arguments.pod)
    answer: admin.TraceResponse = ask(arguments, lambda client: client.admin.trace(request))
    if arguments.output == "json":
        spans = [
            {"name": one.name, "start": one.start, "duration": one.duration, "depth": one.depth, "trace_id": one.trace_id}
            for one in answer.spans
        ]
        as_json({"pod": answer.pod_sandbox_id, "spans": spans})
        return 0
    print(f"pod {answer.pod_sandbox_id}")
    for line in draw(answer.spans, width=shutil.get_terminal_size((100, 24)).columns):
        print(line)
    for one in answer.spans:
        if one.depth == 0 and one.trace_id:
            print(f"trace {one.trace_id}  {one.name}")
    return 0
