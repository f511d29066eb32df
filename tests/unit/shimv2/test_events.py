"""Events reach the callback typed and in order; broken ones are refused and cost the connection nothing."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from bridge._proto.containerd.events import TaskExit, TaskOom
from bridge._proto.containerd.services.events.ttrpc.v1 import ForwardRequest
from bridge._proto.containerd.types import Any, Empty, Envelope, Timestamp
from bridge.errors import HostError, InvalidRequest, ShimGone
from bridge.shimv2.client import TtrpcClient
from bridge.shimv2.encoding import packed
from bridge.shimv2.events import SERVICE, ShimEvent, serve_events


def forward(event: Any | None, topic: str = "/tasks/exit") -> ForwardRequest:
    return ForwardRequest(envelope=Envelope(timestamp=Timestamp(seconds=5, nanos=7), namespace="default", topic=topic, event=event))


async def test_events_arrive_typed_and_in_order(tmp_path: Path) -> None:
    seen: list[ShimEvent] = []
    oom, ended = TaskOom(container_id="c"), TaskExit(container_id="c", id="c", exit_status=137)
    path = tmp_path / "events.sock"
    async with serve_events(path, seen.append), TtrpcClient.connect(path) as client:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        for event in (
            packed("containerd.events.TaskOOM", oom),
            packed("type.googleapis.com/containerd.events.TaskExit", ended),
            packed("vendor.Other", ended),
        ):
            await client.call(SERVICE, "Forward", forward(event), Empty, timeout=10)
    assert seen == [
        ShimEvent("default", "/tasks/exit", 5_000_000_007, "containerd.events.TaskOOM", oom),
        ShimEvent("default", "/tasks/exit", 5_000_000_007, "containerd.events.TaskExit", ended),
        ShimEvent("default", "/tasks/exit", 5_000_000_007, "vendor.Other", None),
    ]
    assert not path.exists()


@pytest.mark.parametrize(
    ("event", "field"),
    [(None, "envelope.event"), (Any(type_url="containerd.events.TaskOOM", value=b"\x0a\xff\xff"), "envelope.event.value")],
)
async def test_an_event_that_can_not_be_read_is_refused(tmp_path: Path, event: Any | None, field: str) -> None:
    seen: list[ShimEvent] = []
    async with serve_events(tmp_path / "s", seen.append), TtrpcClient.connect(tmp_path / "s") as client:
        with pytest.raises(InvalidRequest, match=field):
            await client.call(SERVICE, "Forward", forward(event), Empty, timeout=10)
        await client.call(SERVICE, "Forward", forward(packed("containerd.events.TaskOOM", TaskOom())), Empty, timeout=10)
    assert len(seen) == 1


async def test_a_socket_left_behind_is_replaced_and_a_bad_place_is_named(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with serve_events(path, lambda event: None):
        pass
    path.touch()
    async with serve_events(path, lambda event: None), TtrpcClient.connect(path):
        pass
    with pytest.raises(ShimGone, match="no shim listens at"):
        async with TtrpcClient.connect(path):
            pass
    with pytest.raises(HostError, match="can't serve ttrpc at"):
        async with serve_events(tmp_path / "missing/s", lambda event: None):
            pass
