"""Connections to localhost of a network namespace."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import anyio
import pytest

from bridge.errors import HostError, InvalidRequest, NotFound, Unavailable
from bridge.host import namespaces, netdial, syscalls

pytestmark = pytest.mark.root
T = TypeVar("T")


def fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
async def pin(tmp_path: Path) -> AsyncIterator[Path]:
    pins = await namespaces.create(tmp_path / "ns", net=True, ipc=False, uts=False, hostname="", sysctls={})
    yield pins["net"]
    await namespaces.remove(tmp_path / "ns")


async def listen(pin: Path | None, family: int, address: str, port: int = 0) -> socket.socket:
    def make() -> socket.socket:
        if pin is not None:
            fd = namespaces.open_pin(pin, "net")
            syscalls.setns(fd, syscalls.CLONE_NEWNET)
            os.close(fd)
        sock = socket.socket(family)
        sock.bind((address, port))
        sock.listen(1024)
        return sock

    return await namespaces.in_own_thread(make)


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
async def test_either_family(pin: Path, family: int, address: str) -> None:
    with closing(await listen(pin, family, address)) as listener:
        port = listener.getsockname()[1]
        before = fds()
        with closing(await netdial.dial(pin, port)) as dialled:
            assert not dialled.getblocking()
            assert dialled.getpeername()[:2] == (address, port)
            accepted, _ = listener.accept()
            accepted.sendall(b"hello")
            await anyio.wait_readable(dialled)
            assert dialled.recv(10) == b"hello"
            accepted.close()
        assert fds() == before
        with pytest.raises(Unavailable, match="connection refused"):
            await netdial.dial(None, port)


async def test_the_hosts_own_namespace() -> None:
    with closing(await listen(None, socket.AF_INET, "127.0.0.1")) as listener:
        threads = threading.active_count()
        (await netdial.dial(None, listener.getsockname()[1])).close()
        assert threading.active_count() <= threads  # that of listen may only be ending now


async def test_four_comes_before_six(pin: Path) -> None:
    with closing(await listen(pin, socket.AF_INET, "127.0.0.1", 8080)), closing(await listen(pin, socket.AF_INET6, "::1", 8080)):
        with closing(await netdial.dial(pin, 8080)) as dialled:
            assert dialled.family == socket.AF_INET


async def test_nobody_listens(pin: Path) -> None:
    before = fds()
    with pytest.raises(Unavailable) as caught:
        await netdial.dial(pin, 81)
    assert str(caught.value) == "can't connect to port 81 of the pod's localhost (127.0.0.1: connection refused; ::1: connection refused)"
    assert fds() == before


async def test_a_listener_that_never_accepts(pin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netdial, "CONNECT_SECONDS", 0.2)

    def full() -> list[socket.socket]:
        fd = namespaces.open_pin(pin, "net")
        syscalls.setns(fd, syscalls.CLONE_NEWNET)
        os.close(fd)
        listener = socket.create_server(("127.0.0.1", 82), backlog=0)
        clients = [socket.socket() for _ in range(3)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", 82))
        return [listener, *clients]

    held = await namespaces.in_own_thread(full)
    before = fds()
    with anyio.fail_after(5), pytest.raises(Unavailable, match=r"127\.0\.0\.1: no answer within 0.2 s; ::1: connection refused"):
        await netdial.dial(pin, 82)
    assert fds() == before
    for sock in held:
        sock.close()


async def test_five_hundred_at_once_from_threads_that_end(pin: Path) -> None:
    with closing(await listen(pin, socket.AF_INET, "127.0.0.1")) as listener:
        port, made = listener.getsockname()[1], []
        threads, before = threading.active_count(), fds()

        async def one() -> None:
            made.append(await netdial.dial(pin, port))

        async with anyio.create_task_group() as group:
            for _ in range(500):
                group.start_soon(one)
        assert len(made) == 500
        for sock in made:
            sock.close()
        assert fds() == before
        with anyio.fail_after(5):
            while threading.active_count() > threads:
                await anyio.sleep(0.01)


async def test_a_namespace_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        await netdial.dial(tmp_path / "none", 80)
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match="not a pinned namespace"):
        await netdial.dial(tmp_path / "file", 80)


@pytest.mark.parametrize("port", [0, -1, 65536])
async def test_what_is_no_port(port: int) -> None:
    with pytest.raises(InvalidRequest, match="port: "):
        await netdial.dial(None, port)


async def test_a_guests_address_where_localhost_has_nobody(pin: Path) -> None:
    with closing(await listen(None, socket.AF_INET, "127.0.0.77")) as listener:  # on the host, as the way to a guest is
        port = listener.getsockname()[1]
        with closing(await netdial.dial(pin, port, addresses=["127.0.0.77"])) as dialled:
            assert dialled.getpeername() == ("127.0.0.77", port)
    with closing(await listen(pin, socket.AF_INET, "127.0.0.78")) as listener:  # in the namespace alone, beside its localhost
        port = listener.getsockname()[1]
        with closing(await netdial.dial(pin, port, addresses=["127.0.0.78"])) as dialled:
            assert dialled.getpeername() == ("127.0.0.78", port)


async def test_localhost_goes_before_a_guests_address(pin: Path) -> None:
    with closing(await listen(pin, socket.AF_INET, "127.0.0.1")) as listener:
        port = listener.getsockname()[1]
        with closing(await netdial.dial(pin, port, addresses=["127.0.0.79"])) as dialled:
            assert dialled.getpeername() == ("127.0.0.1", port)


async def test_each_place_that_refused_is_named_and_no_socket_stays_open(pin: Path) -> None:
    before = fds()
    wanted = "127.0.0.1: connection refused; ::1: .*; 127.0.0.79 from the node: .*; 127.0.0.79 from the pod's namespace: connection refused"
    with pytest.raises(Unavailable, match=wanted):
        await netdial.dial(pin, 9, addresses=["127.0.0.79"])
    assert fds() == before


@pytest.fixture
def visits(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A namespace for each visit to one."""
    found = []
    visit = namespaces.run_in_network

    async def counted(netns: Path, work: Callable[[], T]) -> T:
        found.append(netns)
        return await visit(netns, work)

    monkeypatch.setattr(namespaces, "run_in_network", counted)
    return found


async def test_those_who_come_soon_find_a_socket_ready(pin: Path, visits: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netdial, "KEEP_SECONDS", 600.0)
    before = fds()
    with closing(await listen(pin, socket.AF_INET, "127.0.0.1")) as listener:
        port, dialer = listener.getsockname()[1], netdial.Dialer(pin)
        made = [await dialer.dial(port) for _ in range(95)]
        assert len(visits) == 7, "1, 2, 4, … 32, 32 sockets"
        assert {sock.getpeername() for sock in made} == {("127.0.0.1", port)}
        for sock in made:
            sock.close()
        (await dialer.dial(port)).close()
        assert fds() > before + 1
        dialer.rest()
        assert fds() == before + 1
        (await dialer.dial(port)).close()  # who rests may go on
        dialer.rest()


async def test_sockets_that_nobody_wants_are_closed(pin: Path) -> None:
    before = fds()
    dialer = netdial.Dialer(pin)
    with anyio.fail_after(30):
        while fds() <= before:  # the second that comes soon has one more of either family made
            with pytest.raises(Unavailable):
                await dialer.dial(81)
        while fds() > before:
            await anyio.sleep(0.05)


async def test_who_gives_up_leaves_nothing_for_long(pin: Path) -> None:
    before = fds()
    dialer = netdial.Dialer(pin)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await dialer.dial(81)
    with anyio.fail_after(30):
        while fds() > before:
            await anyio.sleep(0.05)


async def test_many_at_once_share_visits(pin: Path, visits: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netdial, "KEEP_SECONDS", 600.0)
    with closing(await listen(pin, socket.AF_INET6, "::1")) as listener:
        port, made, dialer = listener.getsockname()[1], [], netdial.Dialer(pin)

        async def one() -> None:
            made.append(await dialer.dial(port))

        async with anyio.create_task_group() as group:
            for _ in range(200):
                group.start_soon(one)
        assert len({sock.getsockname() for sock in made}) == 200
        assert len(visits) <= 2 * 11, "of 1, 2, 4, … 32, 32 sockets of either family"
        for sock in made:
            sock.close()
        dialer.rest()
