"""A server that is killed in the middle of an ADD: the plugin goes on, and the next server's DEL waits for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from bridge.aio import Supervisor
from bridge.host import namespaces
from bridge.network.cni import Cni, CniSettings
from bridge.ports.network import PodNetworkRequest
from tests.unit.network.fakeplugins import FakePlugins, result

pytestmark = pytest.mark.root

SERVER = """
import sys
from pathlib import Path
import anyio
from bridge.aio import Supervisor
from bridge.network.cni import Cni, CniSettings
from bridge.ports.network import PodNetworkRequest

async def main(conf, plugins, netns):
    async with Supervisor() as supervisor, Cni.open(CniSettings(conf_dir=conf, bin_dirs=(plugins,)), supervisor) as cni:
        await cni.add(cni.plan(PodNetworkRequest("sb1", "p", "n", "u", netns)))

anyio.run(main, *map(Path, sys.argv[1:]))
"""


async def test_del_waits_for_a_plugin_that_outlived_its_server(tmp_path: Path) -> None:
    plugins = FakePlugins(tmp_path)
    begun, go_on, log = tmp_path / "begun", tmp_path / "go", tmp_path / "order"
    os.mkfifo(begun)
    os.mkfifo(go_on)
    # The inner shell is what a delegated plugin (IPAM) is: it inherits the claim too.
    plugins.install(
        "a",
        ADD=f"sh -c 'echo x > {begun}; read -r line < {go_on}; echo added >> {log}'; {result('10.0.0.5/24')}",
        DEL=f"echo deleted >> {log}",
    )
    plugins.configure()
    pins = await namespaces.create(tmp_path / "ns", net=True, ipc=False, uts=False, hostname="", sysctls={})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    server = subprocess.Popen([sys.executable, "-c", SERVER, plugins.conf, plugins.bin, pins["net"]], env=environment)
    await anyio.to_thread.run_sync(begun.read_text)
    server.send_signal(signal.SIGKILL)
    server.wait()
    async with Supervisor() as supervisor, Cni.open(CniSettings(conf_dir=plugins.conf, bin_dirs=(plugins.bin,)), supervisor) as cni:
        attachment = cni.plan(PodNetworkRequest("sb1", "p", "n", "u", pins["net"]))
        async with anyio.create_task_group() as group:
            group.start_soon(cni.delete, attachment)
            await anyio.sleep(0.3)
            assert not log.exists()
            await anyio.to_thread.run_sync(go_on.write_text, "x\n")
    assert log.read_text().split() == ["added", "deleted"]
    await namespaces.remove(tmp_path / "ns")


async def test_a_plugin_that_left_a_daemon_behind_holds_up_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plugins = FakePlugins(tmp_path)
    daemon = tmp_path / "daemon"
    plugins.install("a", ADD=f"sleep 300 >/dev/null 2>&1 </dev/null & echo $! > {daemon}; {result('10.0.0.5/24')}", DEL=":")
    plugins.configure()
    pins = await namespaces.create(tmp_path / "ns", net=True, ipc=False, uts=False, hostname="", sysctls={})
    try:
        settings = CniSettings(conf_dir=plugins.conf, bin_dirs=(plugins.bin,), plugin_timeout=0.5)
        async with Supervisor() as supervisor, Cni.open(settings, supervisor) as cni:
            attachment = cni.plan(PodNetworkRequest("sb1", "p", "n", "u", pins["net"]))
            network = await cni.add(attachment)
            await cni.delete(network.attachment)
            assert "still works" not in caplog.text
        async with Supervisor() as supervisor, Cni.open(settings, supervisor) as cni:
            await cni.delete(network.attachment)
            assert "still works" in caplog.text
    finally:
        os.kill(int(daemon.read_text()), signal.SIGKILL)
        await namespaces.remove(tmp_path / "ns")
    assert plugins.order == ["ADD a", "DEL a", "DEL a"]
