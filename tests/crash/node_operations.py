"""What the node does by itself: a server that starts, another configuration, a monitor that is succeeded or renewed."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import anyio
from anyio.to_thread import run_sync

import bridge
from bridge._proto.runtime import v1 as pb
from bridge.errors import BridgeError
from bridge.monitor.client import MonitorClient
from bridge.monitor.program import program
from tests.crash.stages import CREATED, EXITED, RUNNING, Operation, Stage, alive, nothing, running, writing
from tests.integration.daemon_node import DaemonNode, Kubelet, log_lines

_LATE = "late"
_PATIENCE = 20.0


async def _several(kubelet: Kubelet, stage: Stage) -> None:
    """One container that runs, one that was never started, one that has ended, and a pod that is stopped."""
    await running(kubelet, stage)
    stage.others["created"] = await kubelet.create(stage.pod, name="created")
    stage.others["exited"] = await kubelet.started(stage.pod, "exit 4", name="exited")
    await kubelet.exited(stage.others["exited"])
    stage.others["stopped"] = await kubelet.run(f"{stage.pod[:8]}-stopped")
    await kubelet.stop_pod(stage.others["stopped"])


async def _restart(kubelet: Kubelet, _stage: Stage) -> None:
    await run_sync(kubelet.node.kill)
    try:
        await kubelet.node.restart()
    except AssertionError as exc:  # it was killed, or told what hinders it and ended
        raise ConnectionError(str(exc)[:200]) from exc


async def _restarted(kubelet: Kubelet, stage: Stage) -> None:
    await alive(kubelet, stage)
    assert (await kubelet.status(stage.container)).state is RUNNING
    fresh = await kubelet.status(stage.others["created"])
    assert fresh.state is CREATED or (stage.monitor_lost and fresh.state is EXITED and fresh.reason), fresh
    ended = await kubelet.status(stage.others["exited"])
    assert (ended.state, ended.exit_code) == (EXITED, 4), ended
    assert (await kubelet.pod_status(stage.pod)).state is pb.PodSandboxState.SANDBOX_READY
    assert (await kubelet.pod_status(stage.others["stopped"])).state is pb.PodSandboxState.SANDBOX_NOTREADY
    if fresh.state is CREATED:
        await kubelet.start(stage.others["created"])
        assert await kubelet.output(stage.others["created"], "echo alive") == "alive"


async def _reload(kubelet: Kubelet, stage: Stage) -> None:
    """A handler more."""
    file = kubelet.node.config_file
    stage.others["config"] = text = file.read_text().partition(f"[runtime.handlers.{_LATE}]")[0]
    file.write_text(f'{text}[runtime.handlers.{_LATE}]\nplugin = "runc"\noptions.path = "runc"\n')
    await _until_handlers(kubelet, late=True)


async def _is_reloaded(kubelet: Kubelet, stage: Stage) -> None:
    await alive(kubelet, stage)
    await _reload(kubelet, stage)
    late = Kubelet(kubelet.node, kubelet.cri, _LATE)
    container = await late.started(await late.run(f"{stage.pod[:8]}-late"))
    assert await late.output(container, "echo late") == "late"


async def _as_before(kubelet: Kubelet, stage: Stage) -> None:
    kubelet.node.config_file.write_text(stage.others["config"])
    await _until_handlers(kubelet, late=False)
    (kubelet.node.root / "run" / "runtimes" / f"probe-{_LATE}.json").unlink(missing_ok=True)  # so that the next one is tried, too


async def _until_handlers(kubelet: Kubelet, *, late: bool) -> None:
    """A handler whose probe was too slow, as on a node that is busy, is disabled; another reload tries it again."""
    assert kubelet.node.process is not None
    with anyio.fail_after(6 * _PATIENCE):
        while True:
            kubelet.node.process.send_signal(signal.SIGHUP)
            with anyio.move_on_after(_PATIENCE / 2):
                while late is not any(each.name == _LATE for each in (await kubelet.cri.runtime.status()).runtime_handlers):
                    await anyio.sleep(0.02)
                return


async def _lose_monitor(kubelet: Kubelet, _stage: Stage) -> None:
    before = await kubelet.node.kill_monitor()
    await _until_monitor(kubelet.node, lambda client: client.pid != before)


async def _until_monitor(node: DaemonNode, true: object) -> None:
    assert callable(true)
    with anyio.fail_after(_PATIENCE):
        while True:
            try:
                async with MonitorClient.connect(node.monitor_socket, timeout=0.1) as client:
                    if true(client):
                        return
            except BridgeError:
                pass
            await anyio.sleep(0.02)


async def _writes_on(kubelet: Kubelet, stage: Stage, *, lost: Sequence[str] = ("kill-both",)) -> None:
    """Its log goes on, and its end is told; but the pipes are gone with server and monitor, as those faults take them."""
    if stage.fault not in lost:
        so_far = len(log_lines(stage.log))
        with anyio.fail_after(_PATIENCE):
            while len(log_lines(stage.log)) < so_far + 3:
                await anyio.sleep(0.02)
    await kubelet.stop(stage.container, 0)
    status = await kubelet.status(stage.container)
    assert status.state is EXITED, status
    assert status.reason, status


async def _of_another_release(kubelet: Kubelet, stage: Stage) -> None:
    """A monitor whose program is not this server's; nothing runs yet."""
    node = kubelet.node
    await run_sync(node.kill)
    await node.kill_monitor()
    argv = [sys.executable, "-P", "-S", "-m", "bridge.monitor", "--socket", str(node.monitor_socket), "--detach", "--log-file", os.devnull]
    await run_sync(lambda: subprocess.run(argv, env={**os.environ, "PYTHONPATH": str(_other_release(node.root))}, check=True))
    await node.restart()
    await writing(kubelet, stage)


def _other_release(root: Path) -> Path:
    tree = root / "older"
    if not tree.exists():
        shutil.copytree(Path(bridge.__file__).parent, tree / "bridge", ignore=shutil.ignore_patterns("__pycache__"))
        with (tree / "bridge" / "monitor" / "place.py").open("a") as file:
            file.write("# of another release\n")
    return tree


async def _renewed(kubelet: Kubelet, _stage: Stage) -> None:
    """The server does it as soon as it looks after its monitor."""
    await _until_monitor(kubelet.node, lambda client: client.program == program())


# A server that ends after its monitor did, and before another one has the pipes, takes them with it.
_writes_on_if_held = functools.partial(_writes_on, lost=("kill-both", "kill-server", "hang"))

NODE_OPERATIONS = [
    Operation("restart", _several, _restart, _restarted, faults=("kill-server", "kill-monitor", "kill-both", "error", "hang"), reads=False),
    Operation("reload", running, _reload, _is_reloaded, _as_before),
    Operation("monitor-lost", writing, _lose_monitor, _writes_on_if_held),
    Operation("monitor-renewed", _of_another_release, _renewed, _writes_on, nothing),
]
