"""Pods by the command kata-runtime: the order of its verbs, what reaches the guest and how, and that nothing is left.

It runs against a stand-in (fake_kata_runtime), which keeps kata-runtime's rules with runc in place of a guest.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from bridge_kata import probe
from bridge_kata.handler import open_handler
from bridge_kata.options import KataOptions

from bridge.errors import ConfigError, RuntimeFailed, Unsupported
from bridge.host import mounts, namespaces, shared_mounts
from bridge.monitor.client import MonitorClient
from bridge.ports.runtime import Ability, ContainerHandle, ContainerSpec, ExecSpec, NamespacePaths, RuntimeBackend, SandboxKind, SandboxSpec
from tests.integration.oci_node import OciNode, oci_node

pytestmark = pytest.mark.root
MAPPING = Path("/run/kata-containers/containers-mapping")


class KataNode:
    """A host with the stand-in; ``served`` is one life of the server."""

    def __init__(self, node: OciNode) -> None:
        self.node = node
        self.binary = node.root / "kata-runtime"
        self.binary.write_text(f"#!{sys.executable}\n" + Path(__file__).with_name("fake_kata_runtime.py").read_text())
        self.binary.chmod(0o755)
        self.calls = node.root / "calls"
        self.env = {"KATA_CALLS": str(self.calls), "KATA_RUNC_ROOT": str(node.root / "state/runc")}
        self.backend: RuntimeBackend

    @contextlib.asynccontextmanager
    async def served(self, **options: object) -> AsyncIterator[RuntimeBackend]:
        chosen = KataOptions.model_validate(
            {"flavour": "cli", "path": str(self.binary), "required_devices": (), "env": self.env, **options},
        )
        async with MonitorClient.connect(self.node.socket) as client:
            self.node.client = client
            try:
                async with open_handler("kata", chosen, self.node.context()) as self.backend:
                    yield self.backend
            finally:
                self.node.client = None

    def verbs(self) -> list[str]:
        """What was asked of kata-runtime, without its global options."""
        found = []
        for line in self.calls.read_text().splitlines():
            words = line.split()
            while words[0].startswith("--") and words[0] != "--version":
                words = words[2:]
            found.append(words[0])
        return found

    async def pod(self, *, shared_pid: bool = False) -> SandboxSpec:
        made = self.node.pod("kata")
        await shared_mounts.share(made.state_dir)
        pins = await namespaces.create(made.state_dir / "ns", net=True, ipc=True, uts=True, hostname="", sysctls={})
        for name in ("shm", "etc"):
            (made.state_dir / name).mkdir()
        (made.state_dir / "resolv.conf").write_text("nameserver 10.0.0.1\n")
        oci = self.node.oci(made.id, ["/bin/sleep", "1000"])
        oci["linux"]["namespaces"] = [
            {"type": "network", "path": str(pins["net"])},
            {"type": "pid"},
            {"type": "mount"},
            {"type": "uts"},
            {"type": "ipc"},
        ]
        oci["annotations"] = {"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": made.id}
        return replace(made, oci=oci, namespaces=NamespacePaths(net=pins["net"]), shared_pid=shared_pid)

    def container(self, pod: SandboxSpec, *args: str, **oci: Any) -> ContainerSpec:
        made = self.node.container(pod, list(args), **oci)
        annotations = {"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": pod.id}
        return replace(made, oci={**made.oci, "annotations": annotations})


@pytest.fixture
async def kata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[KataNode]:
    monkeypatch.setattr(probe, "_SYSLOG", tmp_path)
    async with oci_node(tmp_path, "runc") as node:
        made = KataNode(node)
        yield made
        for pod in node.root.glob("kata-*"):
            await namespaces.remove(pod / "ns")
        await mounts.unmount_tree(node.root)
        assert node.leftovers() == []
        assert not MAPPING.exists() or not list(MAPPING.iterdir())


async def exec_in(container: ContainerHandle, *args: str) -> tuple[int, bytes]:
    read, write = os.pipe()
    try:
        process = {"args": list(args), "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"]}
        made = await container.exec(ExecSpec(os.urandom(8).hex(), process, None, write, None))
        os.close(write)
        write = -1
        with anyio.fail_after(30):
            status = await made.wait()
        await made.delete()
        return status.code, os.read(read, 4096)
    finally:
        os.close(read)
        if write >= 0:
            os.close(write)


async def test_life_of_a_pod(kata: KataNode) -> None:
    async with kata.served() as backend:
        assert backend.sandbox_kind is SandboxKind.VM
        assert backend.features.version == "kata-runtime  : 1.13.0"
        pod = await kata.pod()
        machine = await backend.create_sandbox(pod)
        assert machine.pid is not None
        spec = kata.container(pod, "/bin/sh", "-c", "echo out; echo err >&2; trap 'exit 4' TERM; while :; do sleep 0.1; done")
        container = await machine.create_container(spec)
        await container.start()
        assert container.cgroup is None
        with anyio.fail_after(30):
            while len(kata.node.log(spec)) < 2:
                await anyio.sleep(0.02)
        assert sorted(kata.node.log(spec)) == ["err", "out"]
        assert await exec_in(container, "/bin/sh", "-c", "echo inside; exit 5") == (5, b"inside\n")
        look = await container.stats()
        assert look is not None
        assert look.cpu_ns
        assert await container.stats() is look, "asked again within seconds it answers from memory"
        await container.kill(signal.SIGTERM)
        with anyio.fail_after(30):
            assert (await container.wait()).code == 4
        await container.release()
        await container.delete()
        await machine.delete()
        await machine.delete()
        assert kata.verbs() == ["--version", "run", "run", "exec", "events", "delete", "kill", "delete"]


async def test_sigkill_goes_by_the_verb_for_a_stand_in_could_not_pass_it_on(kata: KataNode) -> None:
    async with kata.served() as backend:
        pod = await kata.pod()
        machine = await backend.create_sandbox(pod)
        container = await machine.create_container(kata.container(pod, "/bin/sleep", "1000"))
        await container.start()
        await container.kill(signal.SIGKILL)
        with anyio.fail_after(30):
            assert (await container.wait()).code == 137
        assert f"kill --all {container.id} 9" in kata.calls.read_text()
        await container.delete()
        await machine.delete()


async def test_a_running_container_and_its_machine_are_deleted_in_order(kata: KataNode) -> None:
    async with kata.served() as backend:
        pod = await kata.pod()
        machine = await backend.create_sandbox(pod)
        containers = [await machine.create_container(kata.container(pod, "/bin/sleep", "1000")) for _ in range(2)]
        for container in containers:
            await container.start()
        for container in containers:
            await container.delete()
        await machine.delete()
        assert kata.verbs()[-2:] == ["kill", "delete"]


async def test_the_end_of_the_machine_is_told(kata: KataNode) -> None:
    async with kata.served() as backend:
        machine = await backend.create_sandbox(await kata.pod())
        assert machine.pid is not None
        os.kill(machine.pid, signal.SIGKILL)
        with anyio.fail_after(30):
            assert (await machine.wait()).code == 137
        await machine.delete()


async def test_a_boot_that_fails_is_told_with_the_commands_words_and_leaves_nothing(kata: KataNode) -> None:
    kata.env["KATA_TROUBLE"] = "fail"
    async with kata.served() as backend:
        with pytest.raises(RuntimeFailed, match="Could not access KVM kernel module"):
            await backend.create_sandbox(await kata.pod())


async def test_after_a_restart_of_the_server_all_is_as_it_was(kata: KataNode) -> None:
    pod = await kata.pod()
    async with kata.served() as backend:
        machine = await backend.create_sandbox(pod)
        spec = kata.container(pod, "/bin/sh", "-c", "trap 'exit 6' TERM; while :; do sleep 0.1; done")
        container = await machine.create_container(spec)
        await container.start()
        records = json.loads(json.dumps([machine.record, container.record]))
    async with kata.served() as backend:
        machine = await backend.load_sandbox(pod, records[0])
        container = await machine.load_container(spec, records[1])
        assert await exec_in(container, "/bin/true") == (0, b"")
        await container.kill(signal.SIGTERM)
        with anyio.fail_after(30):
            assert (await container.wait()).code == 6
        await container.delete()
        await machine.delete()


async def test_a_host_that_kata_runtime_can_not_work_on(kata: KataNode, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"options\.path: there is no executable '/nowhere/kata'; install Kata Containers"):
        async with kata.served(path="/nowhere/kata"):
            pass
    monkeypatch.setattr(probe, "_SYSLOG", Path("/nowhere/log"))
    with pytest.raises(Unsupported, match="writes to syslog and fails without /nowhere/log"):
        async with kata.served():
            pass


async def test_what_its_pods_can_not_do_is_declared(kata: KataNode) -> None:
    async with kata.served() as backend:
        assert backend.features.lacks(Ability.HOST_NETWORK)
        assert backend.features.has(Ability.STATS)
        assert "io.katacontainers.config.hypervisor.default_vcpus" in backend.features.annotations
