"""SIGHUP and restarts with another configuration: new pods get what it says, pods that run keep the handler they were made on."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable

import anyio
import pytest

from bridge._proto.runtime import v1 as pb
from bridge.client import CriClient, CriError, connect
from tests.integration.daemon_fixtures import own_node
from tests.integration.daemon_node import DaemonNode, Kubelet

__all__ = ["own_node"]

pytestmark = pytest.mark.root

SECONDS = 30.0


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    with anyio.fail_after(SECONDS):
        while not await true():
            await anyio.sleep(0.05)


async def handlers(cri: CriClient) -> set[str]:
    """As a kubelet reads them."""
    answer = await cri.runtime.status(pb.StatusRequest())
    return {handler.name for handler in answer.runtime_handlers}


def hang_up(node: DaemonNode, change: Callable[[str], str]) -> None:
    node.config_file.write_text(change(node.config_file.read_text()))
    assert node.process is not None
    node.process.send_signal(signal.SIGHUP)


def without_crun(text: str) -> str:
    return text.replace("[runtime.handlers.crun]\n", "[runtime.handlers.crun]\nenabled = false\n")


async def gone(kubelet: Kubelet, pod: str) -> None:
    """Stop and remove it as a kubelet does; the server knows it no more."""
    await kubelet.cri.runtime.stop_pod_sandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod))
    await kubelet.cri.runtime.remove_pod_sandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))
    left = await kubelet.cri.runtime.list_pod_sandbox(pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(id=pod)))
    assert left.items == []


async def test_pods_outlive_the_handler_they_were_made_on(own_node: DaemonNode) -> None:
    node = own_node
    async with connect(node.socket) as cri:
        kubelet = Kubelet(node, cri, "crun")
        first, second = await kubelet.run(), await kubelet.run()
        container, other = await kubelet.started(first), await kubelet.started(second)
        assert await handlers(cri) == {"", "runc", "crun"}
        hang_up(node, without_crun)

        async def removed() -> bool:
            return "crun" not in await handlers(cri)

        await until(removed)
        assert await handlers(cri) == {"", "runc"}
        with pytest.raises(CriError, match=r"no runtime handler 'crun' \(enabled handlers: runc\)"):
            await kubelet.run()
        assert await kubelet.output(container, "echo alive") == "alive"
        later = await kubelet.started(first, name="later")
        assert await kubelet.output(later, "echo new") == "new"
        await gone(kubelet, first)
        assert "retired handler crun is closed" not in node.server_log, "a pod of it is left"
    node.kill()
    await node.restart()
    async with connect(node.socket) as cri:
        kubelet.cri = cri
        assert await handlers(cri) == {"", "runc"}
        assert (await kubelet.status(other)).state is pb.ContainerState.CONTAINER_RUNNING
        assert await kubelet.output(other, "echo alive") == "alive"
        await gone(kubelet, second)

        async def closed() -> bool:
            return "retired handler crun is closed: its last pod is gone" in node.server_log

        await until(closed)


async def test_a_wrong_configuration_changes_nothing(own_node: DaemonNode) -> None:
    node = own_node
    good = node.config_file.read_text()
    async with connect(node.socket) as cri:
        for broken, words in (
            ("[runtime.handlers.crun]\nenabled = fals\n", "not TOML"),
            (without_crun(good).replace('path = "runc"', 'pth = "runc"'), "did you mean 'path'"),
            (without_crun(good).replace('path = "runc"', 'path = "/no/such/runc"'), "there is no executable '/no/such/runc'"),
        ):
            hang_up(node, lambda _, broken=broken: str(broken))

            async def refused(words: str = words) -> bool:
                return any("the configuration stays as it was" in line and words in line for line in node.server_log.splitlines())

            await until(refused)
            assert await handlers(cri) == {"", "runc", "crun"}
        changed = good.replace("shutdown_timeout = 5.0", "shutdown_timeout = 6.0")
        hang_up(node, lambda _: changed + '[runtime.handlers.late]\nplugin = "runc"\n')

        async def added() -> bool:
            return "late" in await handlers(cri)

        await until(added)
        assert "a restart is needed to put in force: server.shutdown_timeout" in node.server_log
        kubelet = Kubelet(node, cri, "late")
        pod = await kubelet.run()
        assert await kubelet.output(await kubelet.started(pod), "echo hello") == "hello"
        await gone(kubelet, pod)


async def test_a_pod_keeps_the_options_that_it_was_made_with(own_node: DaemonNode) -> None:
    node = own_node
    async with connect(node.socket) as cri:
        kubelet = Kubelet(node, cri, "runc")
        pod = await kubelet.run()
        container = await kubelet.started(pod)
        # The container's runtime state is in runc's format, in the same directory: crun could not exec in it.
        hang_up(node, lambda text: text.replace('path = "runc"', 'path = "crun"'))

        async def changed() -> bool:
            return "SIGHUP: changed runc" in node.server_log

        await until(changed)
        assert await kubelet.output(container, "echo alive") == "alive"
        fresh = await kubelet.run()
        assert await kubelet.output(await kubelet.started(fresh), "echo new") == "new"
    node.kill()
    await node.restart()
    async with connect(node.socket) as cri:
        kubelet.cri = cri
        assert await kubelet.output(container, "echo alive") == "alive"
        for each in (pod, fresh):
            await gone(kubelet, each)
