"""What a call costs in processes, counted: by an audit hook in the server, and by wrappers around the runtime and the CNI plugins."""

import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from bridge import daemon
from bridge._proto.runtime import v1 as pb
from bridge.client import CriClient, connect
from bridge.config_files import load
from tests.integration.daemon_fixtures import handler
from tests.integration.daemon_node import CNI_BIN, DaemonNode, Kubelet, daemon_node

__all__ = ["handler"]
pytestmark = pytest.mark.root

_SPAWNS = ("subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "os.exec")
_WRAPPER = '#!/bin/sh\necho "{name} $*" >> {log}\nexec {binary} "$@"\n'
_heard: list[str] = []
_hooked = False


def _hear(event: str, args: tuple[Any, ...]) -> None:
    if event in _SPAWNS:
        _heard.append(f"{event} {args[0] if args else ''}")


@pytest.fixture
def spawned() -> list[str]:
    """Every process that this one starts from now on. An audit hook can't be taken back, so there is one for all tests."""
    global _hooked
    if not _hooked:
        sys.addaudithook(_hear)
        _hooked = True
    _heard.clear()
    return _heard


class Counted:
    """A server in this process, whose runtime and plugins write down each call."""

    def __init__(self, node: DaemonNode, kubelet: Kubelet, spawned: list[str], calls: Path) -> None:
        self.node = node
        self.kubelet = kubelet
        self._spawned = spawned
        self._calls = calls

    def taken(self) -> tuple[list[str], list[str]]:
        """What the server spawned, and what was called by anybody, since the last time."""
        calls = self._calls.read_text().splitlines()
        self._calls.write_text("")
        spawned = [line.split()[-1].rsplit("/", 1)[-1] for line in self._spawned]
        self._spawned.clear()
        return spawned, calls


@pytest.fixture
def counted_node(crun_hierarchy: None, tmp_path: Path, handler: str) -> Iterator[tuple[DaemonNode, Path]]:
    calls = tmp_path / "calls"
    calls.touch()
    binary = shutil.which(handler)
    assert binary is not None
    _wrap(tmp_path / "runtime", "runtime", Path(binary), calls)
    plugins = tmp_path / "cni"
    plugins.mkdir()
    for name in ("bridge", "host-local", "portmap"):
        _wrap(plugins / name, name, CNI_BIN / name, calls)
    with daemon_node(handlers={"counted": str(tmp_path / "runtime")}, cni_bin=plugins) as node:
        node.stop()  # the monitor stays, and the server goes on in the test's process
        yield node, calls


def _wrap(path: Path, name: str, binary: Path, log: Path) -> None:
    path.write_text(_WRAPPER.format(name=name, log=log, binary=binary))
    path.chmod(0o755)


@asynccontextmanager
async def counted(made: tuple[DaemonNode, Path], spawned: list[str]) -> AsyncIterator[Counted]:
    node, calls = made
    async with daemon.running(load([node.config_file])), connect(node.socket) as cri:
        server = Counted(node, Kubelet(node, cri, "counted"), spawned, calls)
        server.taken()
        yield server
        await server.kubelet.clean()


async def test_costs(counted_node: tuple[DaemonNode, Path], spawned: list[str]) -> None:
    async with counted(counted_node, spawned) as server:
        kubelet = server.kubelet
        pod = await kubelet.run()
        spawns, calls = server.taken()
        assert spawns == ["bridge", "portmap"], "RunPodSandbox spawns the CNI plugins and nothing else"
        assert [call.split()[0] for call in calls] == ["bridge", "host-local", "portmap"]
        container = await kubelet.create(pod)
        assert server.taken() == ([], []), "CreateContainer runs nothing"
        await kubelet.start(container)
        spawns, calls = server.taken()
        assert (spawns, [_verb(call) for call in calls]) == ([], ["run"]), "StartContainer is one runtime invocation"
        await kubelet.exec(container, "true")
        spawns, calls = server.taken()
        assert (spawns, [_verb(call) for call in calls]) == ([], ["exec"]), "ExecSync is one"
        await _read(kubelet.cri, pod, container)
        assert server.taken() == ([], []), "reads run nothing"
        limits = pb.LinuxContainerResources(cpu_shares=333, memory_limit_in_bytes=64 << 20)
        await kubelet.cri.runtime.update_container_resources(pb.UpdateContainerResourcesRequest(container_id=container, linux=limits))
        assert [_verb(call) for call in server.taken()[1]] == ["update"], "UpdateContainerResources is one"
        await kubelet.stop(container, 0)
        with anyio.fail_after(5):
            while (server.node.root / "run/runtimes/counted" / container).exists():
                await anyio.sleep(0.01)
        spawns, calls = server.taken()
        assert [_verb(call) for call in calls] == ["delete"], "the exit frees the runtime's state, once"
        await kubelet.remove(container)
        assert server.taken() == ([], []), "RemoveContainer of one that has ended runs nothing"
        await kubelet.stop_pod(pod)
        assert server.taken()[0] == ["portmap", "bridge"]
        await kubelet.remove_pod(pod)
        assert server.taken() == ([], [])


async def test_a_user_namespace_costs_one_helper(counted_node: tuple[DaemonNode, Path], spawned: list[str]) -> None:
    async with counted(counted_node, spawned) as server:
        ids = [pb.IdMapping(host_id=100000, container_id=0, length=65536)]
        user = pb.UserNamespace(mode=pb.NamespaceMode.POD, uids=ids, gids=ids)
        options = pb.NamespaceOption(pid=pb.NamespaceMode.CONTAINER, userns_options=user)
        pod = await server.kubelet.run(options=options)
        assert server.taken()[0] == ["unshare", "bridge", "portmap"]
        volume = pb.Mount(container_path="/volume", host_path=str(server.node.logs), uid_mappings=ids, gid_mappings=ids)
        await server.kubelet.create(pod, name="first", options=options, mounts=[volume])
        assert server.taken() == ([Path(sys.executable).name], []), "the child that looks at volumes, which stays"
        container = await server.kubelet.create(pod, options=options, mounts=[volume])
        assert server.taken() == ([], []), "neither its root filesystem nor its volumes need one"
        await server.kubelet.start(container)
        spawns, calls = server.taken()
        assert (spawns, [_verb(call) for call in calls]) == ([], ["run"])


def _verb(call: str) -> str:
    words = call.split()
    return next(word for word in words if word in ("run", "exec", "delete", "kill", "state", "create", "start", "list", "update"))


async def _read(cri: CriClient, pod: str, container: str) -> None:
    runtime = cri.runtime
    for verbose in (False, True):
        await runtime.status(pb.StatusRequest(verbose=verbose))
        await runtime.pod_sandbox_status(pb.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=verbose))
        await runtime.container_status(pb.ContainerStatusRequest(container_id=container, verbose=verbose))
    await runtime.version()
    await runtime.list_pod_sandbox()
    await runtime.list_containers()
    await runtime.container_stats(pb.ContainerStatsRequest(container_id=container))
    await runtime.list_container_stats(pb.ListContainerStatsRequest())
    await runtime.pod_sandbox_stats(pb.PodSandboxStatsRequest(pod_sandbox_id=pod))
    await runtime.list_pod_sandbox_stats(pb.ListPodSandboxStatsRequest())
    await cri.image.list_images()
    await cri.image.image_fs_info()
    await cri.image.image_status(pb.ImageStatusRequest(image=pb.ImageSpec(image="localhost/busybox:latest"), verbose=True))
