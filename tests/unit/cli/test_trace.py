"""What ``cri-bridge trace`` prints of the spans that the server tells."""

from __future__ import annotations

import argparse
import json

import pytest

from bridge._proto.bridge.admin import v1 as admin
from bridge.cli import trace

ANSWER = admin.TraceResponse(
    pod_sandbox_id="p1",
    spans=[
        admin.Span(name="RunPodSandbox", start=1, duration=2_000_000, trace_id="ab" * 16),
        admin.Span(name="cni add", start=1, duration=1_000_000, depth=1, trace_id="ab" * 16),
        admin.Span(name="StopPodSandbox", start=5_000_000, duration=1_000_000),
    ],
)


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "ask", lambda arguments, question: ANSWER)


def test_the_waterfall_and_below_it_the_ids_of_traces_that_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    assert trace.run(argparse.Namespace(pod="p1", output="table")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "pod p1"
    assert any("cni add" in line for line in lines)
    assert [line for line in lines if line.startswith("trace ")] == [f"trace {'ab' * 16}  RunPodSandbox"]


def test_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert trace.run(argparse.Namespace(pod="p1", output="json")) == 0
    spans = json.loads(capsys.readouterr().out)["spans"]
    assert [(span["name"], span["depth"], span["trace_id"]) for span in spans] == [
        ("RunPodSandbox", 0, "ab" * 16),
        ("cni add", 1, "ab" * 16),
        ("StopPodSandbox", 0, ""),
    ]
