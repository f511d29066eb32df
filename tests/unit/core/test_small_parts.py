"""Stop signals, where a log is, label selectors, traces."""

import dataclasses
import signal

import anyio
import pytest

from bridge.core import container_io, stop_signal, trace
from bridge.core.entities import Sandbox, SandboxState
from bridge.core.model import ContainerConfig, ContainerMetadata, ImageSpec, PodConfig, PodMetadata
from bridge.core.reasons import exit_reason
from bridge.core.selectors import labels_match
from bridge.errors import InvalidRequest
from bridge.ports.images import ImageConfig
from bridge.ports.runtime import ExitStatus
from bridge.testing.fake_stores import IMAGE


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
    assert stop_signal.number(name) == number


@pytest.mark.parametrize("name", ["", "NOPE", "0", "65", "-1", "SIGTERM+1", "SIGRTMIN+99", "RTMIN+x", "SIG", "_IGN", "BLOCK"])
def test_what_is_no_signal(name: str) -> None:
    with pytest.raises(InvalidRequest, match="stop_signal"):
        stop_signal.number(name)


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("SIGTERM", "SIGTERM"), ("quit", "SIGQUIT"), ("15", "SIGTERM"), ("SIGIOT", "SIGIOT"), ("32", "32"), ("34", "SIGRTMIN"),
        ("RTMIN+3", "SIGRTMIN+3"), ("37", "SIGRTMIN+3"), ("SIGRTMIN+15", "SIGRTMIN+15"), ("SIGRTMIN+16", "SIGRTMAX-14"),
        ("SIGRTMAX-15", "SIGRTMIN+15"), ("64", "SIGRTMAX"), ("RTMAX", "SIGRTMAX"),
    ],
)  # fmt: skip
def test_signals_have_one_name(name: str, canonical: str) -> None:
    assert stop_signal.canonical(name) == canonical


@pytest.mark.parametrize("asked", ["", "SIGUSR1"])
@pytest.mark.parametrize(("of_image", "found"), [("", "SIGTERM"), ("SIGQUIT", "SIGQUIT"), ("3", "SIGQUIT"), ("SIGNONSENSE", "SIGTERM")])
def test_whose_stop_signal(asked: str, of_image: str, found: str) -> None:
    image = dataclasses.replace(IMAGE, config=ImageConfig(stop_signal=of_image))
    config = ContainerConfig(ContainerMetadata("c"), ImageSpec("i"), stop_signal=asked)
    assert stop_signal.of_container(config, image) == (asked or found)


def test_an_unknown_stop_signal_is_refused() -> None:
    config = ContainerConfig(ContainerMetadata("c"), ImageSpec("i"), stop_signal="SIGNONSENSE")
    with pytest.raises(InvalidRequest) as caught:
        stop_signal.of_container(config, IMAGE)
    assert caught.value.field == "config.stop_signal"


@pytest.mark.parametrize(
    ("directory", "name", "path"),
    [
        ("/var/log/pods/p", "app/0.log", "/var/log/pods/p/app/0.log"),
        ("/var/log/../log/p/", "./app//../0.log", "/var/log/p/0.log"),
        ("/var/log/p", "/var/log/p/0.log", "/var/log/p/0.log"),
        ("", "0.log", ""),
        ("/var/log/p", "", ""),
    ],
)
def test_where_the_log_is(directory: str, name: str, path: str) -> None:
    assert container_io.log_path(*_log(directory, name)) == path


@pytest.mark.parametrize("name", ["..", "../other/0.log", "a/../../0.log", "/etc/passwd", ".", "a/..", "a\0b"])
def test_a_log_outside_the_pods_directory_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        container_io.log_path(*_log("/var/log/p", name))
    assert caught.value.field == "config.log_path"


def _log(directory: str, name: str) -> tuple[Sandbox, ContainerConfig]:
    pod = PodConfig(PodMetadata("p", "u", "n"), log_directory=directory)
    sandbox = Sandbox("s", pod, "runc", "", SandboxState.READY, 1, "b")
    return sandbox, ContainerConfig(ContainerMetadata("c"), ImageSpec("i"), log_path=name)


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
