"""User namespaces on the real kernel: what they map and own, that the helper is gone, and that failures leave nothing."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import bridge
from bridge.errors import HostError, InvalidRequest, TimedOut
from bridge.host import namespaces, process, syscalls, user_namespaces
from bridge.host.user_namespaces import IdMaps, IdRange

pytestmark = pytest.mark.root

MAPS = IdMaps((IdRange(0, 100000, 1000), IdRange(1000, 5000, 1)), (IdRange(0, 200000, 1000),))
_NS_GET_USERNS = 0xB701


@pytest.fixture
def pins(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "ns"
    yield directory
    for kind in namespaces.KINDS:
        subprocess.run(["umount", "-l", str(directory / kind)], check=False, stderr=subprocess.DEVNULL)


def helpers() -> set[str]:
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {pid for pid in children if Path(f"/proc/{pid}/comm").read_text().strip() in ("cat", "unshare")}


def test_what_is_held_is_mapped_and_ends_with_the_block() -> None:
    with user_namespaces.held(syscalls.CLONE_NEWNET, MAPS) as directory:
        lines = [line.split() for line in (directory / "uid_map").read_text().splitlines()]
        assert lines == [["0", "100000", "1000"], ["1000", "5000", "1"]]
        assert (directory / "gid_map").read_text().split() == ["0", "200000", "1000"]
        for kind, new in (("user", True), ("net", True), ("ipc", False), ("uts", False)):
            assert (os.stat(directory / "ns" / kind).st_ino != os.stat(f"/proc/self/ns/{kind}").st_ino) is new
    assert not directory.exists()
    assert not helpers()


def test_a_mapping_that_the_kernel_refuses() -> None:
    twice = (IdRange(0, 1000, 10), IdRange(0, 2000, 10))
    with pytest.raises(HostError, match=r"refuses the gid_map .*Invalid argument"), user_namespaces.held(0, IdMaps(MAPS.uids, twice)):
        pass
    assert not helpers()


async def test_a_namespace_for_the_sake_of_its_mapping() -> None:
    descriptor = await user_namespaces.open_temporary(MAPS)
    try:
        assert os.stat(descriptor).st_ino != os.stat("/proc/self/ns/user").st_ino
        assert not helpers()
        joined = ["nsenter", f"--user=/proc/self/fd/{descriptor}", "cat", "/proc/self/uid_map"]
        seen = subprocess.run(joined, check=True, capture_output=True, text=True, pass_fds=[descriptor]).stdout
        assert seen.split()[:3] == ["0", "100000", "1000"]
    finally:
        os.close(descriptor)


async def test_a_pods_user_namespace_owns_the_others(pins: Path) -> None:
    sysctls = {"kernel.shmmax": "12345", "fs.mqueue.msg_max": "9", "net.ipv4.ip_forward": "1", "kernel.domainname": "example"}
    made = await namespaces.create(pins, net=True, ipc=True, uts=True, hostname="pod", sysctls=sysctls, user=MAPS)
    assert made == {kind: pins / kind for kind in ("net", "ipc", "uts", "user")}
    user = os.stat(pins / "user").st_ino
    for kind in ("net", "ipc", "uts"):
        pin = namespaces.open_pin(pins / kind, kind)
        owner = fcntl.ioctl(pin, _NS_GET_USERNS)
        assert os.fstat(owner).st_ino == user, f"the {kind} namespace is the user namespace's"
        os.close(owner)
        os.close(pin)
    inside = ["nsenter", *(f"--{kind}={pin}" for kind, pin in made.items()), "--setuid=0", "--setgid=0", "sh", "-c"]
    read = "hostname; cat /proc/sys/kernel/shmmax /proc/sys/fs/mqueue/msg_max /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/domainname"
    said = subprocess.run([*inside, f"{read}; ip -o link show lo"], check=True, capture_output=True, text=True).stdout
    assert said.split()[:5] == ["pod", "12345", "9", "1", "example"]
    assert "LOWER_UP" in said
    await namespaces.remove(pins)
    assert not pins.exists()


@pytest.mark.parametrize("sysctls", [{"kernel.shmmax": "many"}, {"net.ipv4.ip_forward": "many"}])
async def test_a_refused_sysctl_leaves_nothing(pins: Path, sysctls: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await namespaces.create(pins, net=True, ipc=True, uts=True, hostname="pod", sysctls=sysctls, user=MAPS)
    assert caught.value.field == f"config.linux.sysctls[{next(iter(sysctls))}]"
    assert not pins.exists()
    assert not helpers()


def test_a_helper_that_says_why_it_ended_or_is_not_there() -> None:
    for argv, words in ((["sh", "-c", "echo no luck >&2; exit 3"], "no luck"), (["true"], "without a word"), (["/absent"], "can't run")):
        with pytest.raises(HostError, match=words), process.held(argv, timeout=10):
            pass


def test_a_helper_that_does_not_answer_is_killed() -> None:
    began = time.monotonic()
    with pytest.raises(TimedOut), process.held(["sleep", "60"], timeout=0.05):
        pass
    assert time.monotonic() - began < 10
    assert not [pid for pid in helpers() if Path(f"/proc/{pid}/comm").read_text().strip() == "sleep"]


def test_a_helper_ends_with_this_process() -> None:
    code = """
        import os
        from bridge.host import process
        with process.held(["cat"], timeout=10) as pid:
            print(pid, flush=True)
            os._exit(0)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.fspath(Path(bridge.__file__).parent.parent)},
    )
    directory = Path(f"/proc/{int(done.stdout)}")
    deadline = time.monotonic() + 5
    while directory.exists() and (directory / "stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "its input was closed, and it stays"
