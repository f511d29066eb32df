"""Long lists over a stream: bounded messages, encoded when they are due, ended with the reader."""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import anyio
import grpc.aio
import pytest

from bridge._proto.runtime import v1 as pb
from bridge.api import chunks, encoding
from bridge.api.server import GrpcServer
from bridge.client import connect

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


async def test_an_empty_list_is_a_stream_without_a_message() -> None:
    assert [one async for one in chunks.stream(pb.StreamImagesResponse, [])] == []


@pytest.mark.parametrize("size", [1, 1000])
async def test_every_item_comes_in_order_whatever_the_bound(size: int) -> None:
    wanted = [pb.Image(id=f"sha256:{number}") for number in range(50)]
    messages = [one async for one in chunks.stream(pb.StreamImagesResponse, chunks.items(wanted), size)]
    codec = encoding.WireCodec()
    decoded = [encoding.decode(pb.StreamImagesResponse, codec.encode(one, pb.StreamImagesResponse)) for one in messages]
    assert [image for one in decoded for image in one.images] == wanted
