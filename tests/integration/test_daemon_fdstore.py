"""Server and monitor are killed together, under a service manager that keeps descriptors: no container notices, no log ends."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest
from anyio.to_thread import run_sync

from bridge.client import connect
from tests.integration.daemon_fixtures import own_node, usable
from tests.integration.daemon_node import DaemonNode, Kubelet, log_lines
from tests.service_store import ServiceStore

__all__ = ["own_node"]
pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

COUNTS = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done"
LAST_WORDS = "until [ -e /go ]; do sleep 0.02; done; i=0; while [ $i -lt 500 ]; do echo $i; i=$((i+1)); done; exit 5"


@pytest.fixture
def store(own_node: DaemonNode) -> Iterator[ServiceStore]:
    """The node's server runs under it from here on."""
    assert own_node.stop() == 0
    made = ServiceStore(own_node.root / "store", further=own_node.root / "notify")
    own_node.starting = made.start
    own_node.start()
    yield made
    made.close()


def numbers(log: Path) -> list[int]:
    return [int(text) for text in (line.split(" ")[-1] for line in log_lines(log)) if text.isdigit()]


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(30):
        while not condition():
            await anyio.sleep(0.02)


async def goes_on(log: Path) -> None:
    """The counter's log grows."""
    before = len(numbers(log))
    await until(lambda: len(numbers(log)) > before + 20)


async def lose_both(node: DaemonNode) -> None:
    node.kill()
    await node.kill_monitor()


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


async def test_pipes_outlive_server_and_monitor(own_node: DaemonNode, store: ServiceStore) -> None:
    node, pods, last, logs = own_node, {}, {}, {}
    async with connect(node.socket) as cri:
        await usable(cri, node.handlers)
        for handler in ("runc", "crun"):
            kubelet = Kubelet(node, cri, handler)
            pods[handler] = await kubelet.run(f"pod-{handler}")
            await kubelet.started(pods[handler], COUNTS, "counts")
            last[handler] = await kubelet.started(pods[handler], LAST_WORDS, "last")
            logs[handler] = Path(kubelet.configs[pods[handler]].log_directory)
            await goes_on(logs[handler] / "counts.log")
        pids = {handler: int((await kubelet.info(ident))["pid"]) for handler, ident in last.items()}
    await run_sync(store.settle)
    before = set(store.kept)
    assert len(before) == 12, "stdout, stderr and the facts of four containers"

    await lose_both(node)
    (Path(f"/proc/{pids['runc']}/root/go")).touch()  # it says its last words and ends while nobody is there
    await until(lambda: gone(pids["runc"]))
    await node.restart()
    async with connect(node.socket) as cri:
        for directory in logs.values():
            await goes_on(directory / "counts.log")
        ended = await Kubelet(node, cri, "runc").exited(last["runc"])
        assert ended.exit_code in (5, 255), "255 where the kernel can't tell (before Linux 6.15)"
        await until(lambda: numbers(logs["runc"] / "last.log") == list(range(500)))
    await run_sync(store.settle)
    assert set(store.kept) == {name for name in before if not name.startswith(last["runc"])}

    node.kill()  # alone: the monitor has it all, and nothing is stored twice
    await node.restart()
    await lose_both(node)
    await node.restart()
    async with connect(node.socket) as cri:
        os.close(os.open(f"/proc/{pids['crun']}/root/go", os.O_CREAT | os.O_WRONLY))
        for directory in logs.values():
            await goes_on(directory / "counts.log")
            counted = numbers(directory / "counts.log")
            assert counted == sorted(set(counted)), "nothing twice, nothing out of order"
            assert len(set(range(counted[-1])) - set(counted)) <= 2 * 20, "but for what each dead monitor had read and not written"
        kubelet = Kubelet(node, cri, "crun")
        assert (await kubelet.exited(last["crun"])).exit_code in (5, 255)
        await until(lambda: numbers(logs["crun"] / "last.log") == list(range(500)))
        for pod in pods.values():
            await kubelet.remove_pod(pod)
    await run_sync(store.settle)
    assert store.kept == {}
