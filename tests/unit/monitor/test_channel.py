"""Frames with descriptors over a real socket pair; peers that break off, flood or do not read."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

import pytest

from bridge.errors import LimitExceeded
from bridge.monitor import channel
from bridge.monitor.channel import Channel
from bridge.monitor.protocol import BadFrame, Frame, encode


class End:
    """One side, with what it saw."""

    def __init__(self, sock: socket.socket) -> None:
        self.frames: asyncio.Queue[Frame] = asyncio.Queue()
        self.lost: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
        self.channel = Channel(sock, self.frames.put_nowait, self.lost.set_result)

    async def receive(self) -> dict[str, Any]:
        return (await asyncio.wait_for(self.frames.get(), 5)).message


@pytest.fixture
async def ends() -> tuple[End, End]:
    a, b = socket.socketpair()
    return End(a), End(b)


def fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


async def test_messages_both_ways_in_order(ends: tuple[End, End]) -> None:
    a, b = ends
    for n in range(100):
        a.channel.send({"n": n})
        b.channel.send({"m": n})
    assert [await b.receive() for _ in range(100)] == [{"n": n} for n in range(100)]
    assert [await a.receive() for _ in range(100)] == [{"m": n} for n in range(100)]
    a.channel.close()
    assert await b.lost is None


async def test_descriptors_arrive_with_their_message_also_when_the_socket_is_full(ends: tuple[End, End]) -> None:
    a, b = ends
    big = "x" * (1 << 20)
    pipes = [os.pipe() for _ in range(3)]
    a.channel.send({"big": big})
    for _, writer in pipes:
        a.channel.send({"big": big}, [writer])
        os.close(writer)
    assert len((await b.receive())["big"]) == len(big)
    for number, (reader, _) in enumerate(pipes):
        frame = await asyncio.wait_for(b.frames.get(), 5)
        (fd,) = frame.fds
        os.write(fd, str(number).encode())
        os.close(fd)
        assert os.read(reader, 10) == str(number).encode()
        assert os.read(reader, 10) == b"", "no copy of the writing end is left"
        os.close(reader)
    a.channel.close()
    b.channel.close()


async def test_received_descriptors_are_close_on_exec(ends: tuple[End, End]) -> None:
    a, b = ends
    with open(os.devnull, "rb") as null:
        a.channel.send({}, [null.fileno()])
        frame = await b.frames.get()
    assert not os.get_inheritable(frame.fds[0])
    os.close(frame.fds[0])
    a.channel.close()
    b.channel.close()


async def test_a_peer_that_does_not_read_is_given_up(ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = ends
    monkeypatch.setattr(channel, "_BACKLOG_LIMIT", 1 << 20)
    b.channel._loop.remove_reader(b.channel._sock.fileno())
    for _ in range(40):
        a.channel.send({"x": "y" * 100_000})
    assert isinstance(await a.lost, LimitExceeded)
    assert a.channel.closed
    b.channel.close()


async def test_nothing_leaks_when_a_connection_breaks_with_descriptors_under_way() -> None:
    before = fds()
    left, right = socket.socketpair()
    end = End(left)
    reader, writer = os.pipe()
    socket.send_fds(right, [encode({"id": 1}, 2)[:3]], [reader, writer])
    os.close(reader)
    os.close(writer)
    await asyncio.sleep(0.01)
    right.close()
    assert await end.lost is None
    assert fds() == before


async def test_too_many_descriptors_end_the_connection_and_are_closed() -> None:
    before = fds()
    left, right = socket.socketpair()
    end = End(left)
    with open(os.devnull, "rb") as null:
        socket.send_fds(right, [encode({"id": 1})], [null.fileno()] * 30)
    assert isinstance(await end.lost, BadFrame)
    right.close()
    assert fds() == before


async def test_sending_after_the_end_does_nothing(ends: tuple[End, End]) -> None:
    a, b = ends
    b.channel.close()
    await a.lost
    a.channel.send({"x": 1})
    a.channel.close()
