"""Signals, label selectors, traces."""

import signal

import anyio
import pytest

from bridge.core import trace
from bridge.core.container_stop import signal_number
from bridge.core.reasons import exit_reason
from bridge.core.selectors import labels_match
from bridge.errors import InvalidRequest
from bridge.ports.runtime import ExitStatus


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("SIGTERM", 15),
        ("term", 15),
        ("9", 9),
        ("SIGRTMIN", signal.SIGRTMIN),
        ("SIGRTMIN+3", signal.SIGRTMIN + 3),
        ("RTMAX-2", signal.SIGRTMAX - 2),
    ],
)
def test_signals(name: str, number: int) -> None:
    assert signal_number(name) == number


@pytest.mark.parametrize("name", ["", "NOPE", "0", "65", "-1", "SIGTERM+1", "SIGRTMIN+99", "RTMIN+x", "SIG", "_IGN", "BLOCK"])
def test_what_is_no_signal(name: str) -> None:
    with pytest.raises(InvalidRequest, match="stop_signal"):
        signal_number(name)


def test_labels() -> None:
    assert labels_match(None, {})
    assert labels_match({"a": "1"}, {"a": "1", "b": "2"})
    assert not labels_match({"a": "1"}, {"a": "2"})
    assert not labels_match({"a": ""}, {})


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (ExitStatus(0), "Completed"),
        (ExitStatus(1), "Error"),
        (ExitStatus(137, 9, oom_killed=True), "OOMKilled"),
        (ExitStatus(255, reason="MonitorLost"), "MonitorLost"),
    ],
)
def test_exit_reasons(status: ExitStatus, reason: str) -> None:
    assert exit_reason(status) == reason


def test_spans_nest_and_tell_failures() -> None:
    traces = trace.Traces()
    with pytest.raises(ValueError, match="x"), trace.recording(traces, "pod", "Run"):  # noqa: PT012 - the nesting is the point
        with trace.span("one"):
            with trace.span("inner"):
                pass
        with trace.span("two"):
            raise ValueError("x")
    assert [(span.name, span.depth, span.failed) for span in traces.of("pod")] == [
        ("Run", 0, True),
        ("one", 1, False),
        ("inner", 2, False),
        ("two", 1, True),
    ]
    assert all(span.duration > 0 and span.start > 0 for span in traces.of("pod"))


async def test_spans_of_steps_side_by_side_are_siblings() -> None:
    traces = trace.Traces()
    both = anyio.Event()

    async def step(name: str) -> None:
        with trace.span(name):
            if len(traces.of("pod")) == 3:
                both.set()
            await both.wait()

    with trace.recording(traces, "pod", "Run"):
        async with anyio.create_task_group() as group:
            group.start_soon(step, "one")
            group.start_soon(step, "two")
    assert [(span.name, span.depth) for span in traces.of("pod")] == [("Run", 0), ("one", 1), ("two", 1)]


def test_without_a_trace_spans_cost_nothing_and_old_traces_go() -> None:
    with trace.span("nobody listens"):
        pass
    traces = trace.Traces(limit=2)
    for name in ("a", "b", "c"):
        with trace.recording(traces, name, "Run"):
            pass
    assert list(traces.pods) == ["b", "c"]
    traces.forget("b")
    assert traces.of("b") == []
