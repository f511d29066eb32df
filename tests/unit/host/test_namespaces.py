"""Pinned namespaces on the real kernel: contents, clean-up after failure and cancellation, and freeing everywhere."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from bridge.errors import HostError, InvalidRequest, NotFound
from bridge.host import namespaces, syscalls

pytestmark = pytest.mark.root


@pytest.fixture
def pins(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "ns"
    yield directory
    for kind in namespaces.KINDS:
        subprocess.run(["umount", "-l", str(directory / kind)], check=False, stderr=subprocess.DEVNULL)


def mounts_below(path: Path) -> list[str]:
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {path}" in line]


def inode(path: str | Path) -> int:
    return os.stat(path).st_ino


def in_namespaces(directory: Path, *argv: str) -> str:
    command = ["nsenter", *(f"--{kind}={directory / kind}" for kind in ("net", "ipc", "uts") if (directory / kind).exists()), *argv]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


async def make(directory: Path, **changes: object) -> dict[str, Path]:
    arguments: dict[str, object] = {"net": True, "ipc": True, "uts": True, "hostname": "pod-1", "sysctls": {}, **changes}
    return dict(await namespaces.create(directory, **arguments))  # type: ignore[arg-type]


async def test_all_three_are_new_pinned_and_set_up(pins: Path) -> None:
    before = {kind: inode(f"/proc/self/ns/{kind}") for kind in ("net", "ipc", "uts")}
    sysctls = {"net.ipv4.ip_unprivileged_port_start": "7", "net/core/somaxconn": "77", "kernel.shmmax": "12345"}
    sysctls |= {"kernel.sem": "1 2 3 4", "fs.mqueue.msg_max": "9"}
    made = await make(pins, sysctls=sysctls)
    assert made == {kind: pins / kind for kind in ("net", "ipc", "uts")}
    for kind, pin in made.items():
        assert namespaces.is_pinned(pin, kind)
        assert inode(pin) != before[kind]
    assert in_namespaces(pins, "hostname") == "pod-1"
    read = ["net/ipv4/ip_unprivileged_port_start", "net/core/somaxconn", "kernel/shmmax", "kernel/sem", "fs/mqueue/msg_max"]
    values = in_namespaces(pins, "cat", *(f"/proc/sys/{name}" for name in read)).splitlines()
    assert [value.split() for value in values] == [["7"], ["77"], ["12345"], ["1", "2", "3", "4"], ["9"]]
    loopback = in_namespaces(pins, "ip", "-o", "addr", "show", "lo")
    assert "127.0.0.1/8" in loopback
    assert "::1/128" in loopback
    assert {kind: inode(f"/proc/self/ns/{kind}") for kind in before} == before
    assert socket.gethostname() != "pod-1"
    await namespaces.remove(pins)
    assert not pins.exists()
    assert not mounts_below(pins)


async def test_only_what_is_asked_for(pins: Path) -> None:
    assert set(await make(pins, net=False, uts=False, hostname="")) == {"ipc"}
    assert sorted(path.name for path in pins.iterdir()) == ["ipc"]
    await namespaces.remove(pins)
    assert await make(pins, net=False, ipc=False, uts=False) == {}
    assert not pins.exists()


async def test_loopback_can_stay_down(pins: Path) -> None:
    await make(pins, lo_up=False)
    assert "LOOPBACK,UP" not in in_namespaces(pins, "ip", "-o", "link", "show", "lo")
    await namespaces.remove(pins)


async def test_no_thread_is_left(pins: Path) -> None:
    await make(pins)
    for thread in [thread for thread in threading.enumerate() if thread.name == "namespace"]:
        thread.join(5)  # it has given its result and is about to end
        assert not thread.is_alive()
    await namespaces.remove(pins)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sysctls": {"vm.swappiness": "1"}}, r"vm\.swappiness"),
        ({"sysctls": {"net.ipv4.no_such_thing": "1"}}, r"net\.ipv4\.no_such_thing.*no such sysctl"),
        ({"sysctls": {"net.ipv4.ip_forward": "many"}}, r"net\.ipv4\.ip_forward.*'many'"),
        ({"sysctls": {"net.ipv4.ip_forward": "1"}, "net": False}, "own net namespace"),
        ({"hostname": "x" * 65}, r"config\.hostname"),
    ],
)
async def test_a_bad_request_leaves_nothing(pins: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        await make(pins, **changes)
    assert not pins.exists()
    assert not mounts_below(pins)


@pytest.mark.parametrize("step", [1, 2, 3])
async def test_a_failing_pin_leaves_nothing(pins: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    calls = 0
    mount = syscalls.mount

    def failing(*args: object, **kwargs: object) -> None:
        nonlocal calls
        calls += 1
        if calls == step:
            raise OSError(28, "no space")
        mount(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(syscalls, "mount", failing)
    with pytest.raises(HostError, match="no space") as caught:
        await make(pins)
    assert caught.value.errno == 28
    assert not pins.exists()
    assert not mounts_below(pins)
    monkeypatch.undo()
    await make(pins)
    await namespaces.remove(pins)


async def test_existing_pins_are_not_touched(pins: Path) -> None:
    made = await make(pins)
    before = inode(made["net"])
    with pytest.raises(HostError, match="pinned already"):
        await make(pins, ipc=False, uts=False)
    assert inode(made["net"]) == before
    await namespaces.remove(pins)


@pytest.mark.parametrize("how", ["task", "scope"])
async def test_cancellation_leaves_nothing_or_all(pins: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    begun, go_on = threading.Event(), threading.Event()
    unshare = syscalls.unshare

    def slow(flags: int) -> None:
        begun.set()
        go_on.wait(10)
        unshare(flags)

    monkeypatch.setattr(syscalls, "unshare", slow)
    if how == "task":
        task = asyncio.create_task(make(pins))
        await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not pins.exists()
        assert not mounts_below(pins)
        return
    made: dict[str, Path] = {}
    async with anyio.create_task_group() as group:

        async def run() -> None:
            made.update(await make(pins))

        group.start_soon(run)
        await asyncio.to_thread(begun.wait, 10)
        group.cancel_scope.cancel()
        go_on.set()
    assert set(made) == {"net", "ipc", "uts"}  # shielded: the caller got its result and owns it
    await namespaces.remove(pins)


async def test_remove_is_idempotent_and_spares_strangers(pins: Path) -> None:
    await namespaces.remove(pins)
    await make(pins)
    (pins / "other").write_text("x")
    await namespaces.remove(pins)
    await namespaces.remove(pins)
    assert [path.name for path in pins.iterdir()] == ["other"]


async def test_remove_takes_half_made_and_stacked_pins(pins: Path) -> None:
    made = await make(pins)
    subprocess.run(["mount", "--bind", str(made["net"]), str(made["net"])], check=True)
    subprocess.run(["umount", "-l", str(made["ipc"])], check=True)
    await namespaces.remove(pins)
    assert not pins.exists()
    assert not mounts_below(pins)


@pytest.mark.parametrize("propagation", ["private", "slave", "shared"])
@pytest.mark.parametrize("parent", ["private", "shared"])
async def test_removal_frees_the_namespace_in_every_mount_namespace(tmp_path: Path, propagation: str, parent: str) -> None:
    """A veth end in the host lives as long as the pod's namespace does: it tells when that is freed."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(tmp_path)], check=True)
    subprocess.run(["mount", f"--make-{parent}", str(tmp_path)], check=True)
    link = f"nst{os.getpid() % 100000}"
    bystander = None
    try:
        made = await make(tmp_path / "ns", ipc=False, uts=False)
        command = ["unshare", "--mount", "--propagation", propagation, "sh", "-c", "echo ready; read -r line"]
        bystander = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert bystander.stdout is not None
        assert bystander.stdout.readline() == b"ready\n"
        assert f"{made['net']}" in Path(f"/proc/{bystander.pid}/mountinfo").read_text()
        subprocess.run(["ip", "link", "add", link, "type", "veth", "peer", "name", "inside"], check=True)
        fd = namespaces.open_pin(made["net"], "net")
        subprocess.run(["ip", "link", "set", "inside", "netns", f"/proc/self/fd/{fd}"], check=True, pass_fds=[fd])
        os.close(fd)
        await namespaces.remove(tmp_path / "ns")
        with anyio.fail_after(10):
            while Path(f"/sys/class/net/{link}").exists():
                await anyio.sleep(0.01)  # the kernel frees a network namespace in a work queue; nothing tells when
        assert f"{made['net']}" not in Path(f"/proc/{bystander.pid}/mountinfo").read_text()
    finally:
        if bystander is not None:
            bystander.communicate(b"\n", timeout=10)
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
        subprocess.run(["ip", "link", "delete", link], check=False, stderr=subprocess.DEVNULL)


async def test_a_network_pin_elsewhere_is_in_a_shared_directory(pins: Path, tmp_path: Path) -> None:
    netns_dir = tmp_path / "netns"
    try:
        made = await make(pins, net_pin=netns_dir / "pod-a")
        assert made["net"] == netns_dir / "pod-a"
        assert (pins / "net").is_symlink()
        assert namespaces.is_pinned(pins / "net", "net")
        await make(tmp_path / "second", net_pin=netns_dir / "pod-b", ipc=False, uts=False)
        over = [line for line in mounts_below(netns_dir) if line.split()[4] == str(netns_dir)]
        assert len(over) == 1
        assert "shared:" in over[0]
        await namespaces.remove(pins)
        assert not pins.exists()
        assert [path.name for path in netns_dir.iterdir()] == ["pod-b"]
        await namespaces.remove(tmp_path / "second")
        assert list(netns_dir.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", str(netns_dir)], check=False)


async def test_run_in_network_sees_that_network_and_this_thread_does_not_move(pins: Path) -> None:
    made = await make(pins)
    here = inode("/proc/self/ns/net")
    there = await namespaces.run_in_network(made["net"], lambda: inode("/proc/thread-self/ns/net"))
    assert there == inode(made["net"]) != here
    assert inode("/proc/thread-self/ns/net") == here

    def listen() -> socket.socket:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        return listener

    with await namespaces.run_in_network(made["net"], listen) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
        with await namespaces.run_in_network(made["net"], lambda: socket.create_connection(("127.0.0.1", port), timeout=5)):
            listener.accept()[0].close()

    def fail() -> None:
        raise ValueError("own words")

    with pytest.raises(ValueError, match="own words"):
        await namespaces.run_in_network(made["net"], fail)
    await namespaces.remove(pins)


async def test_open_pin_tells_what_is_wrong(pins: Path, tmp_path: Path) -> None:
    made = await make(pins)
    plain = tmp_path / "plain"
    plain.touch()
    with pytest.raises(NotFound, match="absent"):
        namespaces.open_pin(tmp_path / "absent", "net")
    with pytest.raises(HostError, match="not a pinned namespace"):
        namespaces.open_pin(plain, "net")
    with pytest.raises(HostError, match="another kind"):
        namespaces.open_pin(made["ipc"], "net")
    assert not namespaces.is_pinned(plain, "net")
    await namespaces.remove(pins)


async def test_interface_sysctls_wait_for_their_interface(pins: Path) -> None:
    sysctls = {"net.ipv4.conf.eth0.rp_filter": "2", "net.ipv4.conf.all.rp_filter": "0"}
    made = await make(pins, sysctls=sysctls)
    with pytest.raises(InvalidRequest, match="eth0"):
        await namespaces.set_interface_sysctls(made, sysctls)
    in_namespaces(pins, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
    await namespaces.set_interface_sysctls(made, sysctls)
    assert in_namespaces(pins, "cat", "/proc/sys/net/ipv4/conf/eth0/rp_filter") == "2"
    await namespaces.remove(pins)
