"""Metrics in CRI's messages: what is written by hand is what the encoder of messages writes."""

from __future__ import annotations

import pytest

from bridge._proto.runtime import v1 as pb
from bridge.api import convert_metrics
from bridge.core.metric_groups import Group
from bridge.core.metrics import ContainerMetrics, PodMetrics
from bridge.core.metrics_table import Described, Kind, Value
from bridge.wire.codec import decode, piece

COUNTER = Described(Group.CPU, "container_cpu_usage_seconds_total", Kind.COUNTER, "Words.", ("cpu",))
GAUGE = Described(Group.MEMORY, "container_memory_cache", Kind.GAUGE, "Other words.")
KINDS = {Kind.COUNTER: pb.MetricType.COUNTER, Kind.GAUGE: pb.MetricType.GAUGE}


def messages(labels: tuple[str, ...], values: list[tuple[Described, Value]]) -> list[pb.Metric]:
    return [
        pb.Metric(
            name=row.name,
            timestamp=value.at_ns,
            metric_type=KINDS[row.kind],
            label_values=[*labels, *value.labels],
            value=pb.UInt64Value(value=value.value),
        )
        for row, value in values
    ]


@pytest.mark.parametrize("number", [0, 1, 127, 128, 16383, 16384, 1 << 40, (1 << 64) - 1])
def test_it_is_what_messages_encode_to(number: int) -> None:
    of_container = [(COUNTER, Value(("total",), number, 1_700_000_000_123_456_789)), (GAUGE, Value((), number, 5))]
    of_pod = [(GAUGE, Value((), number, 7)), (COUNTER, Value(("eth0" * 40,), 3, 7))]
    pod_labels, labels = ("web", "default", "", "p1", ""), ("web", "default", "äpp", "c1", "registry.example/" + "x" * 200)
    containers = [ContainerMetrics("c1", labels, of_container), ContainerMetrics("c2", labels, [])]
    found = convert_metrics.pod_piece(PodMetrics("p1", pod_labels, of_pod, containers))
    expected = pb.PodSandboxMetrics(
        pod_sandbox_id="p1",
        metrics=messages(pod_labels, of_pod),
        container_metrics=[
            pb.ContainerMetrics(container_id="c1", metrics=messages(labels, of_container)),
            pb.ContainerMetrics(container_id="c2"),
        ],
    )
    assert found == piece(1, expected)
    assert decode(pb.ListPodSandboxMetricsResponse, found).pod_metrics == [expected]


def test_a_pod_of_which_nothing_is_known() -> None:
    found = convert_metrics.pod_piece(PodMetrics("p1", ("",) * 5, [], []))
    assert found == piece(1, pb.PodSandboxMetrics(pod_sandbox_id="p1"))


def test_what_does_not_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="64 bits"):
        convert_metrics.pod_piece(PodMetrics("p1", ("",) * 5, [(GAUGE, Value((), 1 << 64, 7))], []))


def test_a_descriptor_has_the_labels_in_order() -> None:
    assert convert_metrics.descriptor(COUNTER) == pb.MetricDescriptor(
        name=COUNTER.name, help="Words.", label_keys=["pod", "namespace", "container", "id", "image", "cpu"]
    )
