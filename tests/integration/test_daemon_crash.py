"""The server is killed at any moment: whoever asks again gets what he asked for, and in the end nothing is left."""

import random
import shutil
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import anyio
import pytest
from anyio.to_thread import run_sync
from grpclib.const import Status

from bridge._proto.runtime import v1 as pb
from bridge.client import CriError, connect
from bridge.host import cgroups
from tests.integration import pod_cgroups
from tests.integration.daemon_fixtures import own_node
from tests.integration.daemon_node import IMAGE, DaemonNode, Kubelet, log_lines, mark, namespaces, processes
from tests.integration.event_watch import STOPPED, Watch

__all__ = ["own_node"]
pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

T = TypeVar("T")
RUNNING, EXITED = pb.ContainerState.CONTAINER_RUNNING, pb.ContainerState.CONTAINER_EXITED
KILLS = 25
SEED = 20260


async def until_answered(node: DaemonNode, handler: str, call: Callable[[Kubelet], Awaitable[T]]) -> T:
    """The answer to ``call``, made again and again while the server is away, as a kubelet does."""
    with anyio.fail_after(60):
        while True:
            try:
                async with connect(node.socket, wait=30) as cri:
                    return await call(Kubelet(node, cri, handler))
            except CriError as exc:
                if exc.code is not Status.UNAVAILABLE:
                    raise
            await anyio.sleep(0.01)


def expect(error: CriError, *codes: Status) -> None:
    assert error.code in codes, error


class Worker:
    """A kubelet's worker: pods come and go, each with two containers, whatever happens to the server."""

    def __init__(self, node: DaemonNode, handler: str) -> None:
        self.node = node
        self.handler = handler
        self.finished = 0
        self.replaced = 0
        self.ids: list[pb.IdMapping] = []
        self.over = False

    async def ask(self, call: Callable[[Kubelet], Awaitable[T]]) -> T:
        return await until_answered(self.node, self.handler, call)

    async def run(self) -> None:
        while not self.over:
            await self.pod(f"{self.handler}-{self.finished}")
            self.finished += 1

    async def pod(self, name: str) -> None:
        pid = pb.NamespaceMode.POD if self.finished % 3 == 2 else pb.NamespaceMode.CONTAINER
        options = namespaces(pid=pid)
        self.ids = [pb.IdMapping(host_id=100000, container_id=0, length=65536)] if self.finished % 4 == 1 else []
        if self.ids:
            options.userns_options = pb.UserNamespace(mode=pb.NamespaceMode.POD, uids=self.ids, gids=self.ids)
        config = Kubelet.pod_config(self.some(), name, options=options)
        pod = await self.ask(lambda kubelet: kubelet.run(config=config))
        self.configs = {pod: config}
        first = await self.started(pod, options, "first", "exec sleep 1000")
        await self.started(pod, options, "second", "exit 5")
        await self.exec(first)
        await self.update(first)
        await self.ask(lambda kubelet: kubelet.stop(first, 0))
        await self.ask(lambda kubelet: kubelet.remove(first))
        await self.ask(lambda kubelet: kubelet.stop_pod(pod))
        await self.ask(lambda kubelet: kubelet.remove_pod(pod))

    def some(self) -> Kubelet:
        return Kubelet(self.node, None, self.handler)  # type: ignore[arg-type]

    async def started(self, pod: str, options: pb.NamespaceOption, name: str, command: str) -> str:
        for attempt in range(10):
            metadata = pb.ContainerMetadata(name=name, attempt=attempt)
            container = await self.ask(lambda kubelet: self.create(kubelet, pod, command, name, options, metadata))  # noqa: B023
            try:
                await self.ask(lambda kubelet: kubelet.start(container))  # noqa: B023
            except CriError as exc:
                expect(exc, Status.FAILED_PRECONDITION)
                status = await self.ask(lambda kubelet: kubelet.status(container))  # noqa: B023
                if status.reason in ("ContainerLost", "StartError"):  # the server died while starting it: a kubelet makes another
                    self.replaced += 1
                    continue
                assert status.state is RUNNING or status.exit_code == 5, status
            return container
        raise AssertionError("ten starts were lost")

    async def create(
        self, kubelet: Kubelet, pod: str, command: str, name: str, options: pb.NamespaceOption, metadata: pb.ContainerMetadata
    ) -> str:
        kubelet.configs = self.configs
        mount = pb.Mount(container_path="/image", readonly=True, image=pb.ImageSpec(image=IMAGE), image_sub_path=self.finished % 2 * "etc")
        path, ids = str(self.node.logs), self.ids
        copied = pb.Mount(
            container_path="/copied", readonly=True, recursive_read_only=True, host_path=path, uid_mappings=ids, gid_mappings=ids
        )
        # A user that the image doesn't know: its passwd is made anew.
        security = pb.LinuxContainerSecurityContext(namespace_options=options, run_as_user=pb.Int64Value(value=4321))
        linux = pb.LinuxContainerConfig(resources=pb.LinuxContainerResources(memory_limit_in_bytes=64 << 20), security_context=security)
        return await kubelet.create(pod, command, name, linux=linux, metadata=metadata, mounts=[mount, copied])

    async def update(self, container: str) -> None:
        """More memory, which is in force and told however often the server was killed meanwhile."""
        wanted = pb.LinuxContainerResources(memory_limit_in_bytes=96 << 20)
        request = pb.UpdateContainerResourcesRequest(container_id=container, linux=wanted)
        await self.ask(lambda kubelet: kubelet.cri.runtime.update_container_resources(request))
        status = await self.ask(lambda kubelet: kubelet.status(container))
        assert status.resources is not None
        assert status.resources.linux is not None
        assert status.resources.linux.memory_limit_in_bytes == 96 << 20

    async def exec(self, container: str) -> None:
        async with connect(self.node.socket, wait=30) as cri:
            try:
                await Kubelet(self.node, cri, self.handler).exec(container, "sleep 0.02; echo out")
            except CriError as exc:
                expect(exc, Status.UNAVAILABLE, Status.FAILED_PRECONDITION)


async def nothing_gone_is_running(node: DaemonNode) -> None:
    """Every container that is told as running has a process."""
    async with connect(node.socket, wait=30) as cri:
        kubelet = Kubelet(node, cri, "runc")
        request = pb.ListContainersRequest(filter=pb.ContainerFilter(state=pb.ContainerStateValue(state=RUNNING)))
        for each in (await cri.runtime.list_containers(request)).containers:
            try:
                pid = (await kubelet.info(each.id))["pid"]
                if not pid or not Path(f"/proc/{pid}").exists():
                    await kubelet.exited(each.id, timeout=5)
            except CriError as exc:
                expect(exc, Status.NOT_FOUND)  # removed meanwhile


async def test_killed_at_any_moment(own_node: DaemonNode) -> None:
    chance = random.Random(SEED)
    node = own_node
    workers = [Worker(node, handler) for handler in ("runc", "crun")]
    async with anyio.create_task_group() as group:
        for worker in workers:
            group.start_soon(worker.run)
        for number in range(KILLS):
            await anyio.sleep(chance.uniform(0, 0.35))
            await run_sync(node.kill)
            if number % 4 == 3:  # in the middle of its start: opening, recovering, undoing
                node.spawn()
                await anyio.sleep(chance.uniform(0.02, 0.4))
                await run_sync(node.kill)
            await node.restart()
            await nothing_gone_is_running(node)
        for worker in workers:
            worker.over = True
    assert sum(worker.finished for worker in workers) >= 4
    async with connect(node.socket) as cri:
        assert (await cri.runtime.list_pod_sandbox()).items == []
        assert (await cri.runtime.list_containers()).containers == []
        kubelet = Kubelet(node, cri, "runc")
        assert await kubelet.run("runc-0"), "no name is held"
        await kubelet.clean()
        await cri.image.remove_image(pb.RemoveImageRequest(image=pb.ImageSpec(image=IMAGE)))  # no image is held either
    for line in node.server_log.splitlines():
        assert "Traceback" not in line, node.server_log[-6000:]


async def lost(kubelet: Kubelet, container: str, command: str) -> None:
    """The call of a client whose server is killed."""
    with pytest.raises(CriError, match="lost"):
        await kubelet.exec(container, command)


def freeze(pid: int) -> Path:
    """Hold the cgroup of ``pid`` still, as a server does on v1 that is about to kill all in it; its directory."""
    directory = cgroups.controller_directory(cgroups.of_pid(pid), "freezer")
    assert directory is not None
    assert directory.name.startswith("exec-")
    v1 = directory / "freezer.state"
    (v1 if v1.exists() else directory / "cgroup.freeze").write_text("FROZEN" if v1.exists() else "1")
    return directory


@pytest.mark.parametrize("handler", ["runc", "crun"])
async def test_what_happens_while_the_server_is_away(own_node: DaemonNode, handler: str) -> None:
    node, command, end = own_node, mark(1013), mark(1019)
    async with connect(node.socket) as cri:
        kubelet = Kubelet(node, cri, handler)
        pod = await kubelet.run()
        configs = kubelet.configs
        flag = kubelet.node.logs / "flag"
        mount = pb.Mount(container_path="/flags", host_path=str(flag.parent))
        wait = "until [ -e /flags/flag ]; do sleep 0.02; done"
        ender = await kubelet.started(pod, f"{wait}; exit 7", name="ender", mounts=[mount])
        hog = await kubelet.started(pod, f"{wait}; exec tail /dev/zero", name="hog", mounts=[mount], memory=16 << 20)
        writer = await kubelet.started(pod, "i=0; while :; do echo $i; i=$((i+1)); sleep 0.002; done", name="writer")
        polite = await kubelet.started(pod, "trap 'exit 3' TERM; while :; do sleep 0.02; done", name="polite")
        created = await kubelet.create(pod, name="created")
        strange = await kubelet.started(pod, f"exec sleep {end}", name="strange")
        before = await cri.runtime.pod_sandbox_status(pb.PodSandboxStatusRequest(pod_sandbox_id=pod))
        async with anyio.create_task_group() as group:
            group.start_soon(lost, kubelet, polite, f"setsid sleep {command} & exec sleep {command}")
            with anyio.fail_after(30):
                while len(processes(command)) < 2:
                    await anyio.sleep(0.02)
            frozen = freeze(processes(command)[0])
            node.kill()
    (node.root / "run" / "sandboxes" / pod / "containers" / strange / "config.json").write_text("damaged")
    flag.touch()
    await anyio.sleep(0.5)
    await node.restart()
    watch = Watch()
    async with connect(node.socket) as cri, anyio.create_task_group() as group:
        group.start_soon(watch.run, cri)
        for ident in (ender, hog):  # whether they are found before or after the kubelet is back
            assert await watch.until(ident, STOPPED) == [STOPPED]
            assert watch.of(ident)[0].created_at > before.timestamp
        group.cancel_scope.cancel()
    async with connect(node.socket) as cri:
        kubelet = Kubelet(node, cri, handler)
        kubelet.configs = configs
        ended = await kubelet.exited(ender)
        assert (ended.exit_code, ended.reason) == (7, "Error")
        assert time.time_ns() - ended.finished_at > 0.3e9, "the time of its exit, not of our looking"
        assert ended.started_at < ended.finished_at
        assert (await kubelet.exited(hog)).reason == "OOMKilled"
        status = await kubelet.status(strange)
        assert (status.state, status.exit_code, status.reason) == (EXITED, 255, "ContainerLost"), "it alone is lost"
        assert processes(end) == [], "which would run beside the next attempt"
        assert (await kubelet.status(writer)).state is RUNNING
        assert await kubelet.output(writer, "echo exec") == "exec"
        await kubelet.stop(writer, 0)
        numbers = [int(line.split()[2]) for line in log_lines(Path(configs[pod].log_directory) / "writer.log")]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) > 50
        await kubelet.start(created)
        assert processes(command) == [], "the commands of lost callers are ended, frozen or not"
        assert not frozen.exists()
        await kubelet.stop(polite, 10)
        assert (await kubelet.status(polite)).exit_code == 3
        assert (await kubelet.pod_status(pod)).network is not None
        await kubelet.clean()
    flag.unlink()


def lose(node: DaemonNode, how: str) -> None:
    """The database of records becomes what ``how`` says."""
    state = node.root / "state"
    if how == "removed state directory":
        shutil.rmtree(state)
        (node.root / "run" / "monitor.sock").unlink()  # and by the way the monitor's socket: the monitor is found all the same
        return
    for suffix in ("-wal", "-shm"):
        (state / f"state.db{suffix}").unlink(missing_ok=True)
    (state / "state.db").write_bytes(b"this was a database" * 100)


@pytest.mark.parametrize("how", ["damaged", "removed state directory"])
async def test_a_lost_database_is_rebuilt_from_what_runs(own_node: DaemonNode, how: str) -> None:
    """Pods and containers are adopted with all that was recorded of them, and give back what they had."""
    node, pods, running = own_node, {}, {}
    async with connect(node.socket) as cri:
        for handler in ("runc", "crun"):
            kubelet = Kubelet(node, cri, handler)
            pod = await kubelet.run(f"kept-{handler}", options=namespaces(pid=pb.NamespaceMode.POD))
            running[await kubelet.started(pod, labels={"kept": "yes"})] = handler
            ended = await kubelet.started(pod, "exit 7", name="ended")
            assert (await kubelet.exited(ended)).exit_code == 7
            pods[pod] = await kubelet.pod_status(pod)
    monitor = node.monitor
    node.kill()
    lose(node, how)
    await node.restart()
    assert node.monitor == monitor
    async with connect(node.socket) as cri:
        for container, handler in running.items():
            kubelet = Kubelet(node, cri, handler)
            status = await kubelet.status(container)
            assert (status.state, status.labels) == (RUNNING, {"kept": "yes"})
            assert await kubelet.output(container, "echo alive") == "alive" or how == "removed state directory"
        for pod, before in pods.items():
            assert await kubelet.pod_status(pod) == before
        codes = [c.exit_code for c in [await kubelet.status(e.id) for e in (await cri.runtime.list_containers()).containers] if c.exit_code]
        assert codes == [7, 7]
        await kubelet.clean()
    aside = [path.name for path in (node.root / "state").glob("state.db.corrupt-*")]
    assert len(aside) == (how == "damaged")
    if how == "removed state directory":  # images are gone with it, and can be had again
        await node.import_images()
        async with connect(node.socket) as cri:
            kubelet = Kubelet(node, cri, "runc")
            assert await kubelet.output(await kubelet.started(await kubelet.run()), "echo new") == "new"
            await kubelet.clean()


async def test_what_no_record_owns_is_removed(own_node: DaemonNode) -> None:
    """With the copy of the records lost too: processes, directories, mounts, addresses and cgroups that are ours beyond doubt."""
    node = own_node
    word = mark(7001)
    async with connect(node.socket) as cri:
        for handler in ("runc", "crun"):
            kubelet = Kubelet(node, cri, handler)
            await kubelet.started(await kubelet.run(f"lost-{handler}", options=namespaces(pid=pb.NamespaceMode.POD)), ["sleep", word])
    with anyio.fail_after(5):  # a runtime may return a moment before its container's process is what it is to be
        while len(processes(word)) != 2:
            await anyio.sleep(0.02)
    node.kill()
    lose(node, "damaged")
    (node.root / "run" / "state-copy.db").write_bytes(b"and this was its copy" * 100)
    await node.restart()
    async with connect(node.socket) as cri:
        assert (await cri.runtime.list_pod_sandbox()).items == []
    assert processes(word) == []
    for pod in ("lost-runc", "lost-crun"):  # the pods' own cgroups are a kubelet's: which of them we had made, only the records knew
        pod_cgroups.remove(pod_cgroups.of_pod(node.name, pod))


async def test_terminated_with_work_in_flight(own_node: DaemonNode) -> None:
    node, word = own_node, mark(3600)
    outcome: list[Status | str] = []
    async with connect(node.socket) as cri:
        kubelet = Kubelet(node, cri, "runc")
        pod = await kubelet.run()
        container = await kubelet.started(pod, "trap '' TERM; echo up; while :; do sleep 0.05; done")
        await kubelet.log(pod)

        async def work(call: Awaitable[object]) -> None:
            try:
                await call
                outcome.append("done")
            except CriError as exc:
                outcome.append(exc.code)

        async with anyio.create_task_group() as group:
            group.start_soon(work, kubelet.stop(container, 3600))
            group.start_soon(work, kubelet.exec(container, f"sleep {word}"))
            for n in range(3):
                group.start_soon(work, kubelet.run(f"late{n}"))
            await anyio.sleep(0.1)
            assert node.process is not None
            node.process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            code = await run_sync(node.process.wait, 30)
            took = time.monotonic() - began
    assert code == 0
    assert took < 5 + 20, "shutdown_timeout, and a moment for what is undone"
    assert set(outcome) <= {Status.UNAVAILABLE, "done"}
    assert processes(word) == []
    await node.restart()
    async with connect(node.socket) as cri:
        kubelet = Kubelet(node, cri, "runc")
        assert (await kubelet.status(container)).state is RUNNING
        assert await kubelet.output(container, "echo alive") == "alive"
        await kubelet.clean()


async def test_sighup_tries_disabled_handlers_again(own_node: DaemonNode, tmp_path: Path) -> None:
    node = own_node
    node.stop()
    binary = tmp_path / "late-runtime"
    with node.config_file.open("a") as config:
        config.write(f'[runtime.handlers.late]\nplugin = "runc"\noptions = {{path = "{binary}"}}\n')
    await node.restart()
    async with connect(node.socket) as cri:
        kubelet = Kubelet(node, cri, "late")
        with pytest.raises(CriError, match="late-runtime"):
            await kubelet.run()
        binary.symlink_to("/usr/sbin/runc" if Path("/usr/sbin/runc").exists() else "/usr/bin/runc")
        assert node.process is not None
        node.process.send_signal(signal.SIGHUP)
        with anyio.fail_after(30):
            while not any(each.name == "late" and each.enabled for each in (await cri.admin.handlers()).handlers):
                await anyio.sleep(0.02)
        pod = await kubelet.run()
        container = await kubelet.started(pod)
        # The runtime goes for a moment, while the server restarts: its containers neither end nor are given up.
        node.stop()
        target = binary.readlink()
        binary.unlink()
    await node.restart()
    async with connect(node.socket) as cri:
        kubelet = Kubelet(node, cri, "late")
        assert (await kubelet.status(container)).state is RUNNING
        with pytest.raises(CriError, match="late-runtime") as caught:
            await kubelet.stop_pod(pod)
        assert caught.value.code is Status.UNAVAILABLE
        binary.symlink_to(target)
        assert node.process is not None
        node.process.send_signal(signal.SIGHUP)
        with anyio.fail_after(30):
            while True:
                try:
                    assert await kubelet.output(container, "echo alive") == "alive"
                    break
                except CriError as exc:
                    expect(exc, Status.UNAVAILABLE)
                    await anyio.sleep(0.1)
        await kubelet.clean()
