"""Pods in real gVisor sandboxes, and what happens when parts of them die. RUNSC names another binary than the installed one.

The network stack is the host's, as an older runsc can't use its own on a newer kernel; what differs is tested without pods.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.to_thread import run_sync
from grpclib.const import Status

from bridge._proto.runtime import v1 as pb
from bridge.client import CriError, connect
from bridge.host import cgroups
from bridge.testing.leaks import difference, snapshot
from tests.conftest import LeakAudit
from tests.integration import pod_cgroups
from tests.integration.counting import COUNTING, count, missing
from tests.integration.daemon_node import IMAGE, DaemonNode, Kubelet, daemon_node, namespaces
from tests.integration.stats_truth import (
    HELD,
    LIMIT,
    WRITTEN,
    Kernel,
    agrees_with_the_workload,
    container_stats,
    layer_is_what_du_says,
    metrics,
    pod_agrees_with_the_kernel,
    pod_stats,
    pods_limit_follows,
    value,
    worked,
)
from tests.unit.core import metric_peers

TOLD = metric_peers.CRITEST - {"container_spec_cpu_period"}
"""Of a container without a limit of CPU."""
pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

RUNSC = os.environ.get("RUNSC", "runsc")
HANDLERS: dict[str, Any] = {
    "gvisor": ("gvisor", {"path": RUNSC, "network": "host", "stats_interval": 1.0}),
    "own-stack": ("gvisor", {"path": RUNSC}),
    "no-network": ("gvisor", {"path": RUNSC, "network": "none"}),
    "rootless": ("gvisor", {"path": RUNSC, "network": "host", "rootless": True}),
}
NOT_READY = pb.PodSandboxState.SANDBOX_NOTREADY
COUNT = "i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); done"


@pytest.fixture(scope="module")
def node() -> Iterator[DaemonNode]:
    with daemon_node(handlers=HANDLERS, stats=["layer_period = 1.0"]) as made:
        anyio.run(_warm, made)
        yield made


async def _warm(node: DaemonNode) -> None:
    async with connect(node.socket) as cri:
        kubelet = Kubelet(node, cri, "gvisor")
        await kubelet.exec(await kubelet.started(await kubelet.run()), "true")
        await kubelet.clean()


@pytest.fixture
async def kubelet(node: DaemonNode, leak_audit: LeakAudit) -> AsyncIterator[Kubelet]:
    """Its pods are removed, and then no process, cgroup, file or mount of runsc may be left."""
    leak_audit.watch(node.scope())
    async with connect(node.socket) as cri:
        made = Kubelet(node, cri, "gvisor")
        yield made
        await made.clean()


@pytest.fixture
def own_node() -> Iterator[DaemonNode]:
    """A server of the test's own, to be killed."""
    with daemon_node(handlers={"gvisor": HANDLERS["gvisor"]}) as made:
        anyio.run(_warm, made)
        scope = dataclasses.replace(made.scope(), pids=[])
        before = snapshot(scope)
        yield made
        deadline = time.monotonic() + 20
        while (left := unowned(made, difference(before, snapshot(scope)))) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left, "left behind:\n" + "\n".join(left)


def unowned(node: DaemonNode, found: Sequence[str]) -> list[str]:
    """What is left but for the successor of a monitor that was killed, which is to stay."""
    return [line for line in found if f" {node.monitor_socket} " not in line]


async def not_ready(kubelet: Kubelet, pod: str) -> None:
    with anyio.fail_after(30):
        while (await kubelet.pod_status(pod)).state is not NOT_READY:
            await anyio.sleep(0.02)


async def test_a_pod_from_start_to_end(kubelet: Kubelet) -> None:
    null = os.stat(os.devnull)
    pod = await kubelet.run()
    status = await kubelet.pod_status(pod)
    assert status.network is not None
    writer = await kubelet.started(pod, f"{COUNT}; echo err >&2; printf rest; exit 7", name="writer")
    ended = await kubelet.exited(writer)
    assert (ended.exit_code, ended.reason) == (7, "Error")
    lines = await kubelet.log(pod, "writer", until=lambda lines: len(lines) > 3001)
    assert [line for line in lines if line.startswith("stdout F")] == [f"stdout F {i}" for i in range(3000)]
    assert {"stderr F err", "stdout P rest"} <= set(lines)
    app = await kubelet.started(pod, "echo first >/shared; exec sleep 1000", envs=[pb.KeyValue(key="A", value=b"b")], working_dir="/tmp")
    assert await kubelet.output(app, "echo $A; pwd; hostname; cat /shared") == f"b\n/tmp\n{kubelet.configs[pod].hostname}\nfirst"
    assert "4.4.0" in await kubelet.output(app, "uname -r"), "gVisor's kernel, not the node's"
    assert status.network.ip in await kubelet.output(app, "ip addr")
    neighbour = await kubelet.started(pod, ["httpd", "-f", "-p", "127.0.0.1:80", "-h", "/etc"], name="neighbour")
    assert status.network.ip in await kubelet.output(neighbour, "cat /etc/hosts")
    assert (await kubelet.exec(neighbour, "cat /shared")).exit_code == 1, "another container's files"
    assert (await kubelet.exec(app, "exit 300")).exit_code == 44
    after = os.stat(os.devnull)
    assert (after.st_uid, after.st_gid, after.st_mode) == (null.st_uid, null.st_gid, null.st_mode), "runsc makes its streams nobody's"
    await kubelet.stop(app, 20)
    assert (await kubelet.status(app)).exit_code == 143
    stubborn = await kubelet.started(pod, "trap '' TERM; echo up; while :; do sleep 0.05; done", name="stubborn")
    await kubelet.log(pod, "stubborn")
    await kubelet.stop(stubborn, 1)
    assert (await kubelet.status(stubborn)).exit_code == 137
    polite = await kubelet.started(pod, "trap 'exit 3' TERM; echo up; while :; do sleep 0.05; done", name="polite")
    await kubelet.log(pod, "polite")
    await kubelet.stop(polite, 20)
    assert (await kubelet.status(polite)).exit_code == 3
    await kubelet.stop_pod(pod)
    assert (await kubelet.status(neighbour)).exit_code == 137
    await kubelet.stop_pod(pod)


async def test_statistics_are_the_sandboxs_own_and_nothing_is_made_up(kubelet: Kubelet, node: DaemonNode) -> None:
    pod = await kubelet.run()
    container, used = await worked(kubelet, pod)
    await agrees_with_the_workload(kubelet, container, used)
    told = (await container_stats(kubelet, container)).memory
    assert told is not None
    assert (told.rss_bytes, told.page_faults, told.major_page_faults, told.psi) == (None,) * 4, "runsc does not say"
    await layer_is_what_du_says(kubelet, node, container, least=WRITTEN // 2)
    sandbox = (await kubelet.pod_info(pod))["pid"]
    await pod_agrees_with_the_kernel(kubelet, pod, sandbox)
    whole = await pod_stats(kubelet, pod)
    assert whole.cpu is not None
    assert whole.memory is not None
    assert value(whole.cpu.usage_core_nano_seconds) >= used // 2
    assert value(whole.memory.usage_bytes) >= HELD
    assert whole.io is None or cgroups.is_v2(), "beside hierarchies of v1 there is no pressure: runsc keeps out of the other one"
    of_pod, of_containers = await metrics(kubelet, pod)
    mine = of_containers[container]
    assert {f"container_{key.partition(':')[0]}" for key in (*of_pod, *mine)} >= TOLD
    assert not {"memory_rss", "memory_cache", "processes", "cpu_user_seconds_total"} & set(mine), "runsc does not say"
    assert mine["memory_usage_bytes"] >= HELD
    assert mine.get("threads", 2) == 2, "a shell and its sleep; an older runsc knows those of the whole sandbox alone"
    after = Kernel.of_pod(kubelet, pod, sandbox).cpu_ns
    assert mine["cpu_usage_seconds_total:total"] * 10**9 <= after, "no more than the sandbox"
    assert mine["spec_memory_limit_bytes"] == LIMIT
    assert of_pod["memory_usage_bytes"] >= HELD
    assert of_pod["memory_rss"] > 0, "of the sandbox itself: what is in it is in a file of memory"
    assert of_pod["memory_failures_total:pgfault:hierarchy"] <= Kernel.of_pod(kubelet, pod, sandbox).memory["faults"]
    assert of_pod["processes"] >= 2, "the sandbox and the helpers of its files"
    assert of_pod["file_descriptors"] >= len(os.listdir(f"/proc/{sandbox}/fd")) // 2
    assert not [key for key in of_pod if "spec" in key or "ulimits" in key or "fs_usage" in key]
    await pods_limit_follows(kubelet, pod)


@pytest.mark.parametrize(("command", "code"), [(["/nope"], 127), (["nope"], 127), (["/etc"], 126)])
async def test_what_cannot_be_started(kubelet: Kubelet, command: list[str], code: int) -> None:
    pod = await kubelet.run()
    container = await kubelet.create(pod, command)
    with pytest.raises(CriError, match=r"(failed to load|error finding executable)") as failure:
        await kubelet.start(container)
    assert failure.value.code is Status.INTERNAL
    assert (await kubelet.status(container)).exit_code == code
    alive = await kubelet.started(pod, name="alive")
    with pytest.raises(CriError, match=r"(failed to load|error finding executable)"):
        await kubelet.exec(alive, command)
    assert await kubelet.output(alive, "echo well") == "well", "the sandbox and its other containers live on"


async def test_a_timed_out_exec_ends_with_its_children(kubelet: Kubelet) -> None:
    app = await kubelet.started(await kubelet.run())
    word = f"700{time.time_ns() % 10**6}"
    with pytest.raises(CriError) as failure:
        await kubelet.exec(app, f"trap '' TERM HUP; sleep {word} & sh -c 'sleep {word} & sleep {word}' & sleep {word}", timeout=1)
    assert failure.value.code is Status.DEADLINE_EXCEEDED
    assert word not in await kubelet.output(app, "ps")


async def test_pid_namespaces(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    app = await kubelet.started(pod, ["sleep", "1111"])
    target = pb.NamespaceOption(pid=pb.NamespaceMode.TARGET, target_id=app)
    debug = await kubelet.started(pod, name="debug", options=target)
    assert "sleep 1111" in await kubelet.output(debug, "ps")
    other = await kubelet.started(pod, name="other")
    assert "sleep 1111" not in await kubelet.output(other, "ps")
    options = namespaces(pid=pb.NamespaceMode.POD)
    shared = await kubelet.run(options=options)
    first = await kubelet.started(shared, ["sleep", "2222"], name="first", options=options)
    second = await kubelet.started(shared, name="second", options=options)
    seen = await kubelet.output(second, "ps")
    assert "sleep 2222" in seen
    assert "\n    1 " in f"\n{seen}"
    assert "sleep 2222" not in seen.splitlines()[1], "the first process is the pod's own"
    await kubelet.stop(first, 0)
    assert await kubelet.output(second, "echo well") == "well"


async def test_the_sandbox_dies(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    app = await kubelet.started(pod)
    made = await kubelet.create(pod, name="made")
    os.kill((await kubelet.pod_info(pod))["pid"], signal.SIGKILL)
    ended = await kubelet.exited(app)
    assert (ended.exit_code, ended.reason) == (137, "SandboxDied")
    await not_ready(kubelet, pod)
    with pytest.raises(CriError, match="not ready"):
        await kubelet.start(made)
    again = await kubelet.run()
    assert await kubelet.output(await kubelet.started(again), "echo well") == "well"


async def test_a_pod_that_takes_too_much_memory(kubelet: Kubelet) -> None:
    config = kubelet.pod_config()
    assert config.linux is not None
    config.linux.resources = pb.LinuxContainerResources(memory_limit_in_bytes=160 << 20)
    pod = await kubelet.run(config=config)
    hog = await kubelet.started(pod, "sleep 0.5; exec dd if=/dev/zero of=/dev/null bs=600M count=1")
    ended = await kubelet.exited(hog, timeout=60)
    assert (ended.exit_code, ended.reason) == (137, "OOMKilled")
    await not_ready(kubelet, pod)


async def test_what_gvisor_cannot_do_is_refused(kubelet: Kubelet, tmp_path: Path) -> None:
    host = namespaces(pid=pb.NamespaceMode.NODE)
    with pytest.raises(CriError, match=r"namespace_options\.pid: .*a kernel of its own") as failure:
        await kubelet.run(options=host)
    assert failure.value.code is Status.UNIMPLEMENTED
    pod = await kubelet.run()
    app = await kubelet.started(pod)
    resources = pb.LinuxContainerResources(memory_limit_in_bytes=64 << 20)
    with pytest.raises(CriError, match="can't change the resources of a container: runsc limits the sandbox as a whole"):
        await kubelet.cri.runtime.update_container_resources(pb.UpdateContainerResourcesRequest(container_id=app, linux=resources))
    if await missing(kubelet.cri, "gvisor"):
        with pytest.raises(CriError, match=r"hostinet|before May 2024") as failure:
            await kubelet.cri.runtime.checkpoint_pod(pb.CheckpointPodRequest(pod_sandbox_id=pod, output_path=str(tmp_path / "pod.tar")))
        assert failure.value.code is Status.FAILED_PRECONDITION


async def test_a_pod_goes_on_where_its_checkpoint_was_made(node: DaemonNode, kubelet: Kubelet, tmp_path: Path) -> None:
    if why := await missing(kubelet.cri, "no-network"):
        pytest.skip(f"{RUNSC}: {why}")
    kubelet = Kubelet(node, kubelet.cri, "no-network")
    pod, out = await kubelet.run(), tmp_path / "pod.tar"
    first = [await kubelet.started(pod, COUNTING, name) for name in ("one", "two")]
    before = [await count(kubelet, each, within=30) for each in first]
    await kubelet.cri.runtime.checkpoint_pod(pb.CheckpointPodRequest(pod_sandbox_id=pod, output_path=str(out)))
    reached = [await count(kubelet, each, least, within=30) for each, least in zip(first, before, strict=True)]
    await kubelet.remove_pod(pod)
    answer = await kubelet.cri.runtime.restore_pod(pb.RestorePodRequest(checkpoint_path=str(out)))
    try:
        assert [each.name for each in answer.restored_containers] == ["one", "two"]
        for each, least, most in zip(answer.restored_containers, before, reached, strict=True):
            assert least <= await count(kubelet, each.container_id, within=30) <= most + 100
            assert await kubelet.output(each.container_id, "cat /new; test -e /etc/group || echo gone") == "hi\ngone"
            image = (await kubelet.status(each.container_id)).image
            assert image is not None
            assert image.image == IMAGE
        one = answer.restored_containers[0].container_id
        await kubelet.stop(one, 0)
        assert (await kubelet.status(one)).exit_code == 137
    finally:
        await kubelet.remove_pod(answer.pod_sandbox_id)


async def reason(node: DaemonNode, handler: str) -> str:
    """Why a handler is disabled, "" if it is not: then a pod runs on it."""
    async with connect(node.socket) as cri:
        kubelet = Kubelet(node, cri, handler)
        try:
            app = await kubelet.started(await kubelet.run())
        except CriError as exc:
            return exc.message
        assert await kubelet.output(app, "echo well") == "well"
        await kubelet.clean()
        return ""


async def test_a_runsc_that_cannot_work_here_is_disabled_with_the_reason(node: DaemonNode) -> None:
    assert re.search(r"'rootless' is disabled: .*trial create failed.*options\.rootless", await reason(node, "rootless"))
    # With its own stack an older runsc can't work on a newer kernel.
    why = await reason(node, "own-stack")
    assert not why or ("'own-stack' is disabled: " in why and 'options.network to "host"' in why), why


def _damage(database: Path) -> None:
    database.write_bytes(b"this was a database" * 100)
    for suffix in ("-wal", "-shm"):
        database.with_name(f"{database.name}{suffix}").unlink(missing_ok=True)


async def cpu_time(kubelet: Kubelet, container: str) -> int:
    """Nanoseconds, once runsc has told of some."""
    with anyio.fail_after(30):
        while (cpu := (await container_stats(kubelet, container)).cpu) is None or not value(cpu.usage_core_nano_seconds):
            await anyio.sleep(0.5)
    return value(cpu.usage_core_nano_seconds)


async def test_server_and_monitor_are_killed_and_the_database_lost(own_node: DaemonNode) -> None:
    """runsc knows the exits all the while; a lost database is rebuilt, and with its copy lost too, what no record owns is removed."""
    node, flag = own_node, own_node.logs / "flag"
    async with connect(node.socket) as cri:
        kubelet = Kubelet(node, cri, "gvisor")
        pod = await kubelet.run()
        mount = pb.Mount(container_path="/flags", host_path=str(flag.parent))
        script = "until [ -e /flags/flag ]; do sleep 0.05; done; exit 7"
        ender = await kubelet.started(pod, script, name="ender", mounts=[mount])
        works = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"  # runsc counts ticks of 10 ms: who only begins may never see one
        app = await kubelet.started(pod, f"{works}; exec sleep 1000")
        sandbox = (await kubelet.pod_info(pod))["pid"]
        config = kubelet.configs[pod]
        spent = await cpu_time(kubelet, app)
    await run_sync(node.kill)
    await node.kill_monitor()
    flag.touch()
    await node.restart()
    async with connect(node.socket) as cri:
        kubelet = Kubelet(node, cri, "gvisor")
        assert (await kubelet.exited(ender, timeout=60)).exit_code == 7
        assert await kubelet.output(app, "echo exec") == "exec"
        assert await cpu_time(kubelet, app) >= spent > 0, "a counter goes on after a restart"
    flag.unlink()
    await run_sync(node.kill)
    _damage(node.root / "state" / "state.db")
    await node.restart()
    async with connect(node.socket) as cri:
        assert await Kubelet(node, cri, "gvisor").output(app, "echo exec") == "exec", "the records are rebuilt from their copy"
    await run_sync(node.kill)
    for database in (node.root / "state" / "state.db", node.root / "run" / "state-copy.db"):
        _damage(database)
    await node.restart()
    with anyio.fail_after(30):
        while Path(f"/proc/{sandbox}").exists() or list((node.root / "run/runtimes/gvisor").iterdir()):
            await anyio.sleep(0.05)
    assert config.linux is not None
    with contextlib.suppress(FileNotFoundError):
        pod_cgroups.remove(config.linux.cgroup_parent)
