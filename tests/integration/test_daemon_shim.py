"""Pods on a containerd shim through the whole daemon: server, monitor and shim are killed while containers write."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator

import anyio
import pytest
from anyio.to_thread import run_sync

from bridge._proto.runtime import v1 as pb
from bridge.client import connect
from tests.integration.daemon_fixtures import audited_node
from tests.integration.daemon_node import DaemonNode, Kubelet, daemon_node, log_lines, processes
from tests.integration.shim_host import SHIM
from tests.integration.stats_truth import (
    HELD,
    LIMIT,
    Kernel,
    agrees_with_the_kernel,
    agrees_with_the_workload,
    container_stats,
    layer_is_what_du_says,
    metrics,
    pod_agrees_with_the_kernel,
    pods_limit_follows,
    value,
    worked,
)
from tests.unit.core import metric_peers

TOLD = metric_peers.CRITEST - {"container_spec_cpu_period"}
"""Of a container without a limit of CPU."""
pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not SHIM or not shutil.which("runc"), reason="needs containerd-shim-runc-v2, runc"),
]
COUNTS = "i=0; while [ ! -e /flags/{0} ]; do i=$((i+1)); echo $i; sleep 0.01; done; echo last; exit {1}"
READY = pb.PodSandboxState.SANDBOX_READY


@pytest.fixture
def node() -> Iterator[DaemonNode]:
    with audited_node(handlers={"shim": ("shim", {"path": SHIM})}, stats=["layer_period = 1.0"]) as made:
        yield made


def counted(lines: list[str]) -> bool:
    """Whether nothing is missing."""
    return lines == [f"stdout F {number + 1}" for number in range(len(lines) - 1)] + ["stdout F last"]


async def cpu_of(kubelet: Kubelet, container: str) -> int:
    """Nanoseconds."""
    cpu = (await container_stats(kubelet, container)).cpu
    assert cpu is not None
    return value(cpu.usage_core_nano_seconds)


async def test_statistics_are_what_the_kernel_says(node: DaemonNode) -> None:
    async with connect(node.socket) as cri:
        kubelet = Kubelet(node, cri, "shim")
        pod = await kubelet.run()
        container, used = await worked(kubelet, pod)
        await agrees_with_the_workload(kubelet, container, used)
        pid = (await kubelet.info(container))["pid"]
        await agrees_with_the_kernel(kubelet, container, pid)
        await pod_agrees_with_the_kernel(kubelet, pod, pid)
        await layer_is_what_du_says(kubelet, node, container)
        of_pod, of_containers = await metrics(kubelet, pod)
        assert {f"container_{key.partition(':')[0]}" for key in (*of_pod, *of_containers[container])} >= TOLD
        kernel, told = Kernel(pid), of_containers[container]
        assert told["memory_failures_total:pgfault:hierarchy"] <= kernel.memory["faults"]
        assert HELD <= told["memory_rss"] <= told["memory_max_usage_bytes"] <= told["spec_memory_limit_bytes"] == LIMIT
        assert (told["processes"], told["threads"], told["threads_max"]) == (2, 2, 0)
        await pods_limit_follows(kubelet, pod)
        await kubelet.clean()


@pytest.mark.skipif(not shutil.which("crun"), reason="needs crun")
async def test_the_hosts_null_device_stays_the_hosts_whatever_the_runtime_does_with_its_streams() -> None:
    """crun ≤ 1.23 gives /dev/null to the user that it starts, in an exec and in a user namespace; the trial is one too."""
    before = os.stat(os.devnull)
    ids = [pb.IdMapping(host_id=150000, container_id=0, length=65536)]
    mapped = pb.UserNamespace(mode=pb.NamespaceMode.POD, uids=ids, gids=ids)
    options = [pb.NamespaceOption(pid=pb.NamespaceMode.CONTAINER, userns_options=users) for users in (None, mapped)]
    with daemon_node(handlers={"crun": ("shim", {"path": SHIM, "binary_name": "crun"}), "runc": ("shim", {"path": SHIM})}) as node:
        async with connect(node.socket) as cri:
            for kubelet in (Kubelet(node, cri, handler) for handler in node.handlers):
                for each in options:
                    pod = await kubelet.run(options=each)
                    context = pb.LinuxContainerSecurityContext(namespace_options=each, run_as_user=pb.Int64Value(value=1234))
                    linux = pb.LinuxContainerConfig(security_context=context)
                    container = await kubelet.started(pod, linux=linux)
                    if each.userns_options is None or kubelet.handler == "runc":  # else crun gets the shim's, and nothing can be told it
                        await kubelet.started(pod, name="terminal", linux=linux, tty=True)
                    assert await kubelet.output(container, "cat; id -u; cat /proc/1/fd/0") == "1234", "its input is at its end"
                    after = os.stat(os.devnull)
                    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
                await kubelet.clean()


async def test_nothing_is_missed_whoever_is_killed(node: DaemonNode) -> None:
    flags = node.root / "flags"
    flags.mkdir()
    mount = pb.Mount(container_path="/flags", host_path=str(flags))

    async def writing(kubelet: Kubelet, pod: str, name: str, code: int) -> str:
        return await kubelet.started(pod, COUNTS.format(name, code), name=name, mounts=[mount])

    async with connect(node.socket) as cri:
        kubelet = Kubelet(node, cri, "shim")
        pod = await kubelet.run()
        containers = {name: await writing(kubelet, pod, name, code) for name, code in (("meanwhile", 4), ("after", 5))}
        logs = {name: node.logs / kubelet.configs[pod].metadata.name / f"{name}.log" for name in containers}  # type: ignore[union-attr]
        for name in containers:
            await kubelet.log(pod, name, until=lambda lines: len(lines) > 5)
        spent = await cpu_of(kubelet, containers["after"])
    await run_sync(node.kill)
    await node.kill_monitor()
    (flags / "meanwhile").touch()
    await node.restart()
    async with connect(node.socket) as cri:
        again = Kubelet(node, cri, "shim")
        again.configs = kubelet.configs
        assert (await again.exited(containers["meanwhile"])).exit_code == 4, "the shim was there to see it"
        assert (await again.pod_status(pod)).state is READY
        assert await cpu_of(again, containers["after"]) > spent > 0, "a counter goes on after a restart"
        assert await again.output(containers["after"], "echo exec") == "exec"
        await node.kill_monitor()
        (flags / "after").touch()
        assert (await again.exited(containers["after"], timeout=40)).exit_code == 5
        assert counted(log_lines(logs["after"])), log_lines(logs["after"])[-3:]
        await again.clean()


async def test_a_dead_shim_is_named_and_the_pod_goes_on(node: DaemonNode) -> None:
    async with connect(node.socket) as cri:
        kubelet = Kubelet(node, cri, "shim")
        pod = await kubelet.run()
        container = await kubelet.started(pod, "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done")
        await kubelet.log(pod, until=lambda lines: len(lines) > 5)
        (shim,) = processes(pod)
        os.kill(shim, signal.SIGKILL)
        died = await kubelet.exited(container)
        assert (died.exit_code, died.reason) == (137, "ShimDied")
        assert (await kubelet.pod_status(pod)).state is READY
        another = await kubelet.started(pod, name="another")
        assert await kubelet.output(another, "echo up") == "up"
        assert processes(pod) not in ([], [shim])
        with anyio.fail_after(60):
            await kubelet.clean()
        assert processes(pod) == []
