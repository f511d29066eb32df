"""Long lists over a stream: bounded messages, encoded when they are due, ended with the reader."""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio
import grpc.aio
import pytest

from bridge._proto.runtime import v1 as pb
from bridge.api import chunks, encoding
from bridge.api.containers import ContainerRpcs
from bridge.api.images import ImageRpcs
from bridge.api.sandboxes import SandboxRpcs
from bridge.api.server import GrpcServer
from bridge.api.snapshots import Snapshots
from bridge.client import connect
from bridge.core.entities import Container, ContainerState, Sandbox, SandboxState
from bridge.core.model import ContainerConfig, ContainerMetadata, ImageSpec, PodConfig, PodMetadata
from bridge.testing.fake_stores import IMAGE, FakeImages

ENTRIES = 10_000
_WIDE = {"annotation": "x" * 2000}


class Node(pb.RuntimeServiceBase):
    """A node with very many containers; notes how many it has encoded and whether a stream has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.encoded = 0
        self.ended = anyio.Event()

    async def version(self, message: pb.VersionRequest) -> pb.VersionResponse:
        return pb.VersionResponse(version=message.version)

    async def stream_containers(self, message: pb.StreamContainersRequest) -> AsyncIterator[pb.StreamContainersResponse]:
        try:
            async with aclosing(chunks.stream(pb.StreamContainersResponse, chunks.items(self._all()), 1 << 16)) as found:
                async for one in found:
                    yield one
        finally:
            self.ended.set()

    def _all(self) -> Iterator[pb.Container]:
        for number in range(ENTRIES):
            self.encoded += 1
            yield pb.Container(id=f"{number:064x}", annotations=_WIDE)


def test_groups_are_bounded_and_lose_nothing() -> None:
    pieces = [bytes([number]) * 400_000 for number in range(7)]
    found = list(chunks.gather(pieces))
    assert [len(group) for group in found] == [2, 2, 2, 1]
    assert [piece for group in found for piece in group] == pieces
    assert all(sum(map(len, group)) <= chunks.MESSAGE for group in found)
    assert list(chunks.gather([])) == []
    assert list(chunks.gather([b"x" * 5_000_000, b"y"])) == [[b"x" * 5_000_000], [b"y"]], "one that is too large goes alone"
    assert list(chunks.gather([b"aa", b"bb", b"c"], 4)) == [[b"aa", b"bb"], [b"c"]], "a group may be full to the byte"


async def test_items_are_encoded_only_when_their_message_is_due() -> None:
    node = Node()
    async with aclosing(chunks.stream(pb.StreamContainersResponse, chunks.items(node._all()), 1 << 16)) as messages:
        first = await anext(messages)
        assert node.encoded < 100, "one message, and the item that did not fit"
        assert encoding.WireCodec().encode(first, pb.StreamContainersResponse)


async def test_a_list_of_ten_thousand_arrives_whole_in_bounded_memory(tmp_path: Path) -> None:
    node = Node()
    async with GrpcServer([node]) as server:
        await server.listen(tmp_path / "cri.sock")
        async with connect(tmp_path / "cri.sock", timeout=60) as cri:
            tracemalloc.start()
            try:
                count = messages = 0
                async for reply in cri.runtime.stream_containers():
                    assert len(reply.containers) <= 33
                    assert reply.containers[0].id == f"{count:064x}"
                    count += len(reply.containers)
                    messages += 1
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
    assert count == ENTRIES
    assert messages >= 300
    # 20 MB of list; in this process are both ends, with the client's window of 4 MiB between them.
    assert peak < 16 << 20, peak


async def test_a_reader_that_stops_holds_up_the_encoding_and_nobody_else(tmp_path: Path) -> None:
    node = Node()
    async with GrpcServer([node]) as server:
        await server.listen(tmp_path / "cri.sock")
        async with connect(tmp_path / "cri.sock", timeout=60) as other:
            channel = grpc.aio.insecure_channel(f"unix:{tmp_path}/cri.sock")
            call = channel.unary_stream("/runtime.v1.RuntimeService/StreamContainers")(b"")
            assert await call.read()
            encoded = -1
            while encoded != node.encoded:  # until what this reader takes ahead is full
                encoded = node.encoded
                for _ in range(50):
                    assert (await other.runtime.version(pb.VersionRequest(version="0"))).version == "0"
            assert encoded < ENTRIES, "the list waits for its reader"
            assert server.in_flight == 1
            call.cancel()
            with anyio.fail_after(30):
                await node.ended.wait()
            assert node.encoded < ENTRIES
            assert (await other.runtime.version(pb.VersionRequest(version="0"))).version == "0"
            await channel.close()


async def test_the_three_lists_with_ten_thousand_entries_each() -> None:
    """Through the RPCs themselves: whole and in order, in small messages, of what there was when the call came."""
    config = PodConfig(PodMetadata("web", "uid", "default"), annotations=_WIDE)
    pods = [Sandbox(f"{number:064x}", config, "runc", "", SandboxState.READY, 1, "boot") for number in range(ENTRIES)]
    asked = ContainerConfig(ContainerMetadata("app"), ImageSpec("busybox"), annotations=_WIDE)
    members = [Container(one.id, one.id, asked, "sha256:1", "ref", ContainerState.RUNNING, 1, "boot") for one in pods]
    images = FakeImages()
    images.images[:] = [
        replace(IMAGE, id=f"sha256:{number:064x}", repo_tags=(f"example.com/{'n' * 300}:{number}",)) for number in range(ENTRIES)
    ]
    store = SimpleNamespace(sandboxes=dict.fromkeys(one.id for one in pods), containers=dict.fromkeys(one.id for one in members))
    found: Any = SimpleNamespace(
        store=store, sandboxes=SimpleNamespace(list=lambda *_: list(pods)), containers=SimpleNamespace(list=lambda *_: list(members))
    )
    sandbox_rpcs, container_rpcs = SandboxRpcs(found, Snapshots(found)), ContainerRpcs(found)
    streams: list[tuple[Any, Any, str]] = [
        (sandbox_rpcs.stream_pod_sandboxes(pb.StreamPodSandboxesRequest()), pb.StreamPodSandboxesResponse, "pod_sandboxes"),
        (container_rpcs.stream_containers(pb.StreamContainersRequest()), pb.StreamContainersResponse, "containers"),
        (ImageRpcs(images, cast("Any", None)).stream_images(pb.StreamImagesRequest()), pb.StreamImagesResponse, "images"),
    ]
    codec = encoding.WireCodec()
    lists: list[Sequence[Any]] = [pods, members, images.images]
    for (stream, kind, field), wanted in zip(streams, lists, strict=True):
        idents, messages = [], 0
        async for message in stream:
            data = codec.encode(message, kind)
            assert len(data) <= chunks.MESSAGE
            idents += [each.id for each in getattr(encoding.decode(kind, data), field)]
            messages += 1
        assert idents == [one.id for one in wanted]
        assert messages > 3


async def test_an_empty_list_is_a_stream_without_a_message() -> None:
    assert [one async for one in chunks.stream(pb.StreamImagesResponse, [])] == []


@pytest.mark.parametrize("size", [1, 1000])
async def test_every_item_comes_in_order_whatever_the_bound(size: int) -> None:
    wanted = [pb.Image(id=f"sha256:{number}") for number in range(50)]
    messages = [one async for one in chunks.stream(pb.StreamImagesResponse, chunks.items(wanted), size)]
    codec = encoding.WireCodec()
    decoded = [encoding.decode(pb.StreamImagesResponse, codec.encode(one, pb.StreamImagesResponse)) for one in messages]
    assert [image for one in decoded for image in one.images] == wanted
