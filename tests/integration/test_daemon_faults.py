"""What the host does wrong under a running server: disks that are full, read-only or fail, no descriptors, no memory.

Each time: what is new is refused in words that name the cause, what happened is told, what is there can be removed, and when the cause
is gone all goes on, with nothing left behind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import re
import resource
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import anyio
import pytest
from anyio.to_thread import run_sync

from bridge._proto.runtime import v1 as pb
from bridge.client import CriError, connect
from bridge.host import cgroups
from bridge.testing.leaks import snapshot
from tests.integration.daemon_fixtures import _left, warm
from tests.integration.daemon_node import DaemonNode, Kubelet, daemon_node

pytestmark = pytest.mark.root

HANDLERS = ("runc", "crun")


def _on_tmpfs(root: Path) -> tuple[str, str]:
    """State and run directory each on a small file system of its own."""
    for name, size in (("state", "96m"), ("run", "48m")):
        (root / name).mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=711", "cb-faults", str(root / name)], check=True)
    return "", ""


@pytest.fixture(autouse=True)
def nothing_is_left() -> None:
    """In place of the audit of the same name: a server that a test restarts serves the tests after it. ``kubelets`` audits."""


@pytest.fixture(scope="module")
def node(crun_hierarchy: None) -> Iterator[DaemonNode]:
    with daemon_node(prepare=_on_tmpfs) as made:
        anyio.run(warm, made)
        yield made


@contextlib.asynccontextmanager
async def kubelets(node: DaemonNode, *, restarts: bool = False) -> AsyncIterator[list[Kubelet]]:
    """One for each runtime, over one connection. Nothing of their pods is left afterwards."""
    scope = node.scope()
    kept = [node.root / "run" / "runtimes" / f"probe-{handler}.json" for handler in HANDLERS]
    kept += [node.root / "run" / f"state-copy.db{suffix}" for suffix in ("", "-wal", "-shm")]  # removed when it can't be written
    scope = dataclasses.replace(scope, pids=[] if restarts else scope.pids, shared=[*scope.shared, *kept])
    before = await run_sync(snapshot, scope)
    async with connect(node.socket) as cri:
        await cri.runtime.version(pb.VersionRequest())  # connected, before descriptors run out
        yield [Kubelet(node, cri, handler) for handler in HANDLERS]
        await Kubelet(node, cri, "runc").clean()
    with anyio.move_on_after(20):
        while await run_sync(_left, node, before, scope):
            await anyio.sleep(0.1)
    assert not (left := await run_sync(_left, node, before, scope)), "\n".join(left)


@contextlib.contextmanager
def filled(directory: Path) -> Iterator[Callable[[], None]]:
    """No byte is free on the file system of ``directory``; call what it gives to take what became free since."""
    path = directory / "filling"

    def fill() -> None:
        with path.open("ab", buffering=0) as file:
            for size in (1 << 20, 4096):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

    try:
        fill()
        yield fill
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def limited(pid: int, what: int, limit: int) -> Iterator[None]:
    """A resource limit of a running process."""
    before = resource.prlimit(pid, what)
    resource.prlimit(pid, what, (limit, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, what, before)


async def _first_free(pid: int) -> int:
    """As limit of descriptors it allows those there are, and not one more. What goes on behind earlier answers is let end first."""
    before: set[str] = set()
    while before != (names := set(os.listdir(f"/proc/{pid}/fd"))):
        before = names
        await anyio.sleep(1)
    held = set(map(int, names))
    return next(number for number in itertools.count() if number not in held)


async def refused(kubelet: Kubelet, pod: str, words: str) -> None:
    """Nothing new is made, and whoever asks is told why."""
    with pytest.raises(CriError, match=words):
        await kubelet.run()
    with pytest.raises(CriError, match=words):
        await kubelet.create(pod, name="another")


async def _refusal(make: Callable[[], Awaitable[str]], take_away: Callable[[str], Awaitable[None]]) -> str:
    """The words of a refusal; "" when it was made, and is taken away again."""
    try:
        made = await make()
    except CriError as exc:
        return exc.message
    await take_away(made)
    return ""


async def refused_once_full(fill: Callable[[], None], kubelet: Kubelet, pod: str) -> None:
    """Nothing new is made from when the last byte is taken: what ended before, and the copy of the records, give some back at first."""
    another = functools.partial(kubelet.create, pod, name="another")
    with anyio.fail_after(30):
        for make, take_away in ((kubelet.run, kubelet.remove_pod), (another, kubelet.remove)):
            words = ""
            while not words:
                fill()
                words = await _refusal(make, take_away)
            assert re.search("(?i)no space left|disk is full", words), words


async def works(kubelet: Kubelet, pod: str) -> None:
    """All is as if nothing had been."""
    container = await kubelet.started(pod, name="afterwards")
    assert await kubelet.output(container, "echo ok") == "ok"


class Pod(NamedTuple):
    """A pod with two running containers: one to end, whose pid is ``pid``, one to keep."""

    kubelet: Kubelet
    id: str
    ending: str
    kept: str
    pid: int


async def ready(kubelets: list[Kubelet]) -> list[Pod]:
    """A pod on each runtime."""
    made = []
    for kubelet in kubelets:
        pod = await kubelet.run()
        ending = await kubelet.started(pod, "trap 'exit 3' TERM; while :; do sleep 0.05; done", name="ending")
        kept = await kubelet.started(pod, name="kept")
        made.append(Pod(kubelet, pod, ending, kept, int((await kubelet.info(ending))["pid"])))
    return made


async def end(pod: Pod) -> None:
    """One container ends by itself, and that is told."""
    os.kill(pod.pid, signal.SIGTERM)
    assert (await pod.kubelet.exited(pod.ending)).exit_code == 3


async def test_a_full_state_directory(node: DaemonNode) -> None:
    async with kubelets(node, restarts=True) as both:
        pods = await ready(both)
        with filled(node.root / "state") as fill:
            for made in pods:
                await refused_once_full(fill, made.kubelet, made.id)
                await end(made)
                await made.kubelet.remove(made.ending)
            doomed = await both[0].cri.runtime.list_pod_sandbox()
            await both[0].stop_pod(pods[0].id)
            await both[0].remove_pod(pods[0].id)
            assert len((await both[0].cri.runtime.list_pod_sandbox()).items) == len(doomed.items) - 1
        await works(pods[1].kubelet, pods[1].id)
        node.kill()
        await node.restart()
        async with connect(node.socket) as cri:
            assert [pod.id for pod in (await cri.runtime.list_pod_sandbox()).items] == [pods[1].id], "what was told is remembered"


async def test_a_full_run_directory(node: DaemonNode) -> None:
    async with kubelets(node) as both:
        pods = await ready(both)
        with filled(node.root / "run") as fill:
            for made in pods:
                await refused_once_full(fill, made.kubelet, made.id)
                await end(made)
                await made.kubelet.remove(made.ending)
                await made.kubelet.stop(made.kept, 0)
            await both[0].stop_pod(pods[0].id)
            await both[0].remove_pod(pods[0].id)
        kubelet, pod = pods[1].kubelet, pods[1].id
        another = await kubelet.started(pod, name="again")
        assert await kubelet.output(another, "echo ok") == "ok"


async def test_a_database_that_cannot_be_written(node: DaemonNode) -> None:
    async with kubelets(node) as both:
        pods = await ready(both)
        assert node.process is not None
        # The log of the database is longer: a write to it fails as on a disk that fails (SQLITE_IOERR), files of a few bytes don't.
        with limited(node.process.pid, resource.RLIMIT_FSIZE, 16 << 10):
            for made in pods:
                await refused(made.kubelet, made.id, r"(?i)disk I/O error|file too large")
                await end(made)
                await made.kubelet.remove(made.ending)
        for made in pods:
            await works(made.kubelet, made.id)


async def test_no_descriptors(node: DaemonNode) -> None:
    async with kubelets(node) as both:
        pods = await ready(both)
        assert node.process is not None
        with limited(node.process.pid, resource.RLIMIT_NOFILE, await _first_free(node.process.pid)):
            for made in pods:
                await refused(made.kubelet, made.id, r"(?i)too many open files")
            for made in pods:  # the end of one gives descriptors back
                await end(made)
        for made in pods:
            await made.kubelet.remove(made.ending)
            await works(made.kubelet, made.id)
        created = [await made.kubelet.create(made.id, name="starved") for made in pods]
        monitor = node.monitor
        with limited(monitor, resource.RLIMIT_NOFILE, await _first_free(monitor)):
            for made, container in zip(pods, created, strict=True):
                with pytest.raises(CriError, match=r"(?i)too many open files"):
                    await made.kubelet.start(container)
                await made.kubelet.stop(made.kept, 0)
                assert (await made.kubelet.status(made.kept)).exit_code == 137
        for made in pods:
            container = await made.kubelet.started(made.id, "echo logged; exec sleep 1000", name="fed")
            assert await made.kubelet.output(container, "echo ok") == "ok"
            assert await made.kubelet.log(made.id, "fed") == ["stdout F logged"]


@contextlib.contextmanager
def short_of_memory(name: str, pid: int, limit: int) -> Iterator[None]:
    """What ``pid`` takes from now on is bounded by a cgroup of its own; beyond it the kernel kills it."""
    v2 = cgroups.is_v2()
    mount = cgroups.layout().mounts["" if v2 else "memory"]
    directory = mount.directory(f"/{name}-server")
    assert directory is not None
    directory.mkdir()
    try:
        (directory / ("memory.max" if v2 else "memory.limit_in_bytes")).write_text(str(limit))
        (directory / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        directory.rmdir()


async def test_a_server_that_the_kernel_kills_for_its_memory(node: DaemonNode) -> None:
    async with kubelets(node, restarts=True) as both:
        pods = await ready(both)
        process = node.process
        assert process is not None
        with short_of_memory(node.name, process.pid, 8 << 20):
            with pytest.raises(CriError):
                await both[0].exec(pods[0].kept, "head -c 16000000 /dev/zero")
            with anyio.fail_after(30):
                await run_sync(process.wait)
        assert process.returncode == -9
        os.kill(pods[0].pid, signal.SIGTERM)
        await node.restart()
        async with connect(node.socket) as cri:
            for made in pods:
                kubelet = Kubelet(node, cri, made.kubelet.handler)
                kubelet.configs = made.kubelet.configs
                assert await kubelet.output(made.kept, "echo ok") == "ok"
                await works(kubelet, made.id)
            assert (await Kubelet(node, cri, "runc").exited(pods[0].ending)).exit_code == 3, "nothing of what happened meanwhile is lost"


async def test_a_readonly_run_directory(node: DaemonNode) -> None:
    """It can't become that under a monitor, whose log is open: only before a start."""
    node.kill()
    await node.kill_monitor()
    run = node.root / "run"
    await run_sync(lambda: subprocess.run(["mount", "-o", "remount,ro", str(run)], check=True))
    try:
        node.spawn()
        assert node.process is not None
        assert await run_sync(node.process.wait, 60) == 1
        assert "Read-only file system" in node.server_log.splitlines()[-1]
    finally:
        await run_sync(lambda: subprocess.run(["mount", "-o", "remount,rw", str(run)], check=True))
    await node.restart()
