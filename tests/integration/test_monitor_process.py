"""The monitor as a process: single, detached, small, surviving its clients and their junk."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from bridge.errors import HostError, InUse, InvalidRequest, MonitorGone, Unavailable
from bridge.monitor.client import MonitorClient
from bridge.monitor.place import Place
from bridge.monitor.starting import spawn
from bridge.monitor.tasks import start_ticks
from tests.integration.monitor_node import Node, gone, node, until

__all__ = ["node"]


_SERVER = """
import anyio, sys
from pathlib import Path
from bridge.monitor.client import MonitorClient
from bridge.monitor.starting import spawn
from bridge.ports.runtime import ContainerIO

async def main(root):
    await spawn(root / "own.sock", log_file=root / "own.log")
    async with MonitorClient.connect(root / "own.sock") as client:
        argv = ["sh", "-c", f"sh -c 'while ! [ -e {root}/go ]; do sleep 0.02; done; echo after; exit 6' & echo $! > {root}/pid"]
        await client.launch("c", argv, cwd=root, pid_file=root / "pid", io=ContainerIO(log_path=root / "c.log"), timeout=10)
        print(client.pid, flush=True)
        await anyio.sleep(60)

anyio.run(main, Path(sys.argv[1]))
"""


async def test_kill_9_of_the_server_leaves_containers_running_and_a_new_one_gets_their_exit(tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "src"
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(tmp_path)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(source)}
    )
    assert server.stdout is not None
    monitor = int(await anyio.to_thread.run_sync(server.stdout.readline))
    server.kill()
    server.wait()
    server.stdout.close()
    assert not gone(monitor)
    async with MonitorClient.connect(tmp_path / "own.sock") as client:
        assert client.pid == monitor
        assert [(task.id, task.exit) for task in await client.tasks()] == [("c", None)]
        (tmp_path / "go").touch()
        assert (await client.wait("c")).code == 6
        assert (tmp_path / "c.log").read_text().endswith("stdout F after\n")
        await client.shutdown(force=True)
    await until(lambda: gone(monitor))


async def test_one_monitor_a_socket(node: Node) -> None:
    with pytest.raises(InUse, match="another monitor serves"):
        await spawn(node.socket, log_file=node.log)
    async with node.connect() as client:
        assert await client.tasks() == []


@pytest.mark.parametrize("lost", [["monitor.sock"], ["monitor.sock.lock"], ["monitor.sock", "monitor.sock.lock"]])
async def test_what_is_deleted_of_its_place_is_made_anew(node: Node, lost: list[str]) -> None:
    """Nobody who is connected notices, and whoever comes finds the same monitor with what it holds."""
    async with node.connect() as client:
        await node.run(client, "c", "sleep 1000")
        before = {path.name: path.stat().st_ino for path in (node.root / name for name in lost)}
        for name in lost:
            (node.root / name).rename(node.root / f"{name}.aside")  # so that its inode is not given to the new one
        await until(lambda: all((node.root / name).exists() and (node.root / name).stat().st_ino != before[name] for name in lost))
        async with node.connect(timeout=10) as other:
            assert other.pid == client.pid
            assert [task.id for task in await other.tasks()] == ["c"]
        with pytest.raises(InUse, match="another monitor serves"):
            await spawn(node.socket, log_file=node.log)
        await client.kill("c", 9)
        assert (await client.wait("c")).signal == 9


async def test_a_place_that_another_took_is_left_to_it(tmp_path: Path) -> None:
    place = Place.take(tmp_path / "m.sock")
    for name in ("m.sock", "m.sock.lock"):
        (tmp_path / name).unlink()
    other = Place.take(tmp_path / "m.sock")
    assert not place.is_held()
    with pytest.raises(Unavailable, match="another monitor serves"):
        place.take_again()
    place.leave()
    place.listener.close()
    assert other.is_held()
    other.leave()
    other.listener.close()
    assert not (tmp_path / "m.sock").exists()


async def test_a_stale_socket_is_no_obstacle(tmp_path: Path) -> None:
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(tmp_path / "m.sock"))
    stale.close()
    await spawn(tmp_path / "m.sock")
    async with MonitorClient.connect(tmp_path / "m.sock") as client:
        pid = client.pid
        await client.shutdown()
        with anyio.fail_after(5):
            await client.closed.wait()
        with pytest.raises(MonitorGone):
            await client.tasks()
    await until(lambda: gone(pid))
    assert not (tmp_path / "m.sock").exists()


async def test_what_keeps_it_from_starting_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="can't lock"):
        await spawn(tmp_path / "file" / "m.sock")
    with pytest.raises(HostError, match=r"No such file.*"):
        await spawn(tmp_path / "m.sock", log_file=tmp_path / "absent" / "log")
    with pytest.raises(MonitorGone, match="no monitor answers"):
        async with MonitorClient.connect(tmp_path / "m.sock", timeout=0.1):
            pass


async def test_sigterm_and_shutdown_are_refused_while_tasks_are_held(node: Node) -> None:
    async with node.connect() as client:
        await node.run(client, "c", "exec sleep 60")
        os.kill(client.pid, signal.SIGTERM)
        with pytest.raises(InUse, match="1 tasks"):
            await client.shutdown()
        await client.kill("c", 9)
        await client.wait("c")
        await client.forget("c")
        os.kill(client.pid, signal.SIGTERM)
        with anyio.fail_after(5):
            await client.closed.wait()


async def test_the_monitor_is_detached_and_hands_on_nothing_odd(node: Node) -> None:
    async with node.connect() as client:
        status = Path(f"/proc/{client.pid}/status").read_text()
        assert os.getsid(client.pid) != os.getsid(0)
        assert f"PPid:\t{os.getpid()}\n" not in status
        assert os.readlink(f"/proc/{client.pid}/cwd") == "/"
        script = "grep -E '^Sig(Blk|Ign)' /proc/self/status; env | grep PYTHON; ls /proc/self/fd | wc -l; umask"
        await node.run(client, "c", script)
        await client.wait("c")
        lines = [text for _, _, text in node.logged("c")]
        assert lines[0].split()[1] == "0" * 16
        ignored = int(lines[1].split()[1], 16)
        assert ignored & ~(1 << (signal.SIGINT - 1) | 1 << (signal.SIGQUIT - 1)) == 0, "sh itself ignores INT and QUIT in the background"
        assert lines[2:] == ["4", "0022"], "stdin, stdout, stderr and the directory that ls reads"


async def test_an_adopted_stranger(node: Node) -> None:
    stranger = subprocess.Popen(["sleep", "60"])
    ticks = start_ticks(stranger.pid)
    assert ticks is not None
    async with node.connect() as client:
        await client.adopt("s", stranger.pid, ticks)
        await client.kill("s", signal.SIGTERM)
        stranger.wait()
        status = await client.wait("s")
        assert (status.code, status.reason) in ((143, ""), (255, "MonitorLost"))
        await client.adopt("gone", stranger.pid, ticks)
        assert (await client.wait("gone")).reason == "MonitorLost"
        await client.adopt("other", os.getpid(), 1)
        assert (await client.wait("other")).reason == "MonitorLost", "another process has that pid by now"
        assert (await client.wait("other")).code == 255


@pytest.mark.parametrize("junk", [b"\xff" * 5, b"\0\0\0\2\0[]", b"\0\0\0\2\0{}", b'\0\0\0\x0d\0{"op":"tasks"}'])
async def test_a_bad_frame_ends_only_its_connection(node: Node, junk: bytes) -> None:
    async with node.connect() as client:
        with socket.socket(socket.AF_UNIX) as bad:
            bad.connect(str(node.socket))
            bad.sendall(junk)
            bad.settimeout(5)
            assert await anyio.to_thread.run_sync(bad.recv, 1) == b""
        assert await client.tasks() == []


async def test_bad_parameters_name_their_field(node: Node) -> None:
    async with node.connect() as client:
        for parameters, field in (
            ({"task": ""}, "task"),
            ({"argv": []}, "argv"),
            ({"argv": ["a\0b"]}, "argv"),
            ({"cwd": "relative"}, "cwd"),
            ({"timeout": 0}, "timeout"),
            ({"env": {"A": 1}}, "env"),
            ({"terminal": True}, "console_socket"),
        ):
            good = {"task": "t", "argv": ["true"], "cwd": "/", "pid_file": "/tmp/x", "timeout": 1}
            with pytest.raises(InvalidRequest, match=rf"^{field}: "):
                await client.call("launch", good | parameters)
        with pytest.raises(InvalidRequest, match=r"unknown operation 'fly'"):
            await client.call("fly", {})


async def test_200_idle_tasks_fit(node: Node) -> None:
    async with node.connect() as client:
        base = _pss(client.pid)
        for n in range(200):
            await node.run(client, f"c{n}", "exec sleep 60")
        full = _pss(client.pid)
        assert base < 18 * 1024
        assert (full - base) / 200 < 8, f"KiB a container: {(full - base) / 200}"
        for n in range(200):
            await client.kill(f"c{n}", 9)


def _pss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise AssertionError("no Pss")


@pytest.mark.root
async def test_it_joins_the_cgroups_it_is_given(tmp_path: Path) -> None:
    mine = {
        directory: Path(directory) / f"monitor-test-{os.getpid()}"
        for directory in ("/sys/fs/cgroup/pids", "/sys/fs/cgroup")
        if (Path(directory) / "cgroup.procs").exists()
    }
    for directory in mine.values():
        directory.mkdir()
    try:
        await spawn(tmp_path / "m.sock", log_file=tmp_path / "log", cgroups=[*mine.values(), tmp_path / "absent"])
        async with MonitorClient.connect(tmp_path / "m.sock") as client:
            pid = client.pid
            for directory in mine.values():
                assert (directory / "cgroup.procs").read_text().split() == [str(pid)]
            await client.shutdown()
        await until(lambda: gone(pid))
        assert "can't join cgroup" in (tmp_path / "log").read_text(), "a missing one is told, not fatal"
    finally:
        for directory in mine.values():
            directory.rmdir()
