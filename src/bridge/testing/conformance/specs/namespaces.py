"""What containers of one pod share, and what not."""

from __future__ import annotations

from bridge._proto.runtime import v1 as pb
from bridge.ports.runtime import Ability
from bridge.testing.conformance.catalogue import spec
from bridge.testing.conformance.stage import NOTREADY, Stage

_POD = pb.NamespaceMode.POD


@spec("CRI NamespaceOption.pid CONTAINER", quick=True)
async def own_processes(stage: Stage) -> None:
    """By default a container sees its own processes only, and its command is process 1"""
    pod = await stage.pod()
    await stage.started(pod, ["sleep", "77777"], name="other")
    container = await stage.started(pod, ["sleep", "88888"])
    listed = await stage.output(container, ["ps", "-o", "pid,args"])
    assert "77777" not in listed
    assert any(line.split() == ["1", "sleep", "88888"] for line in listed.splitlines()), listed


@spec("CRI NamespaceOption.pid POD (shareProcessNamespace)", needs=[Ability.SHARED_PID], quick=True)
async def shared_processes(stage: Stage) -> None:
    """With a shared PID namespace containers see and may signal each other's processes, and none of them is process 1"""
    options = stage.namespaces(pid=_POD)
    pod = await stage.pod(options=options)
    other = await stage.started(pod, ["sleep", "77777"], name="other", options=options)
    container = await stage.started(pod, ["sleep", "88888"], options=options)
    listed = (await stage.output(container, ["ps", "-o", "pid,args"])).splitlines()
    pids = {line.split()[-1]: int(line.split()[0]) for line in listed if "sleep" in line.split()}
    assert {"77777", "88888"} <= set(pids), listed
    assert 1 not in pids.values(), listed
    await stage.output(container, f"kill -9 {pids['77777']}")
    assert (await stage.exited(other)).exit_code == 137


@spec("CRI NamespaceOption.ipc POD; kubelet: /dev/shm of the pod", quick=True)
async def shared_memory(stage: Stage) -> None:
    """Containers of one pod share /dev/shm, pods do not"""
    pod, neighbour = await stage.pod(), await stage.pod()
    one, two = await stage.started(pod, name="one"), await stage.started(pod, name="two")
    other = await stage.started(neighbour)
    await stage.output(one, "echo shared > /dev/shm/word")
    assert await stage.output(two, "cat /dev/shm/word") == "shared"
    assert await stage.output(other, "ls /dev/shm") == ""


@spec("CRI PodSandboxConfig.hostname", network=True, quick=True)
async def hostname(stage: Stage) -> None:
    """Every container has the pod's host name"""
    pod = await stage.pod(config=stage.pod_config(hostname="some-name"))
    for name in ("one", "two"):
        container = await stage.started(pod, name=name)
        assert await stage.output(container, "hostname") == "some-name"


@spec("CRI NamespaceOption.userns_options (hostUsers: false)", needs=[Ability.USER_NAMESPACES])
async def user_namespace(stage: Stage) -> None:
    """Root of a pod with a user namespace is another user on the host, in its volumes too"""
    ids = [pb.IdMapping(host_id=300000, container_id=0, length=65536)]
    options = stage.namespaces()
    options.userns_options = pb.UserNamespace(mode=_POD, uids=ids, gids=ids)
    pod = await stage.pod(options=options)
    container = await stage.started(pod, options=options)
    assert await stage.output(container, "id -u; tr -s ' ' < /proc/self/uid_map") == "0\n 0 300000 65536"
    assert await stage.output(container, "touch /root/x && stat -c %u /root/x") == "0"


@spec("kubelet: a pod whose sandbox died is made anew")
async def dead_sandbox(stage: Stage) -> None:
    """When what holds a pod together is killed, the pod is told as not ready, its containers as ended, and can be removed"""
    shared = stage.has(Ability.SHARED_PID)
    options = stage.namespaces(pid=_POD if shared else pb.NamespaceMode.CONTAINER)
    pod = await stage.pod(options=options)
    container = await stage.started(pod, options=options)
    pid = (await stage.pod_info(pod)).get("pid")
    if not pid or not stage.node.private:
        stage.not_here("the pod has no process of its own, or the server is not the suite's")
    import os
    import signal

    os.kill(int(pid), signal.SIGKILL)
    assert (await stage.exited(container)).exit_code in (137, 255)

    async def down() -> bool:
        return (await stage.pod_status(pod)).state is NOTREADY

    await stage.until(down, "the pod is told as ready")
    await stage.stop_pod(pod)
    await stage.remove_pod(pod)
