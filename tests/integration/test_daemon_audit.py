"""The operator's audit against a real server: doctor --leaks, check and wipe, with the server running and stopped."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from typing import Any

import pytest
from anyio.to_thread import run_sync

from bridge._proto.runtime import v1 as pb
from bridge.client import connect
from bridge.host import cgroups
from tests.integration.daemon_fixtures import own_node
from tests.integration.daemon_node import DaemonNode, Kubelet, environment, namespaces

__all__ = ["own_node"]
pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


async def told(node: DaemonNode, *words: str, code: int = 0) -> Any:
    """What the command says in JSON; its exit code must be ``code``."""
    argv = [sys.executable, "-m", "bridge", "--config", str(node.config_file), *words, "-o", "json"]
    done = await run_sync(lambda: subprocess.run(argv, capture_output=True, env=environment(), timeout=120, check=False))
    assert done.returncode == code, done.stdout.decode() + done.stderr.decode() + node.server_log[-3000:]
    return json.loads(done.stdout)


async def refused(node: DaemonNode, *words: str) -> str:
    argv = [sys.executable, "-m", "bridge", "--config", str(node.config_file), *words]
    done = await run_sync(lambda: subprocess.run(argv, capture_output=True, env=environment(), timeout=120, check=False))
    assert done.returncode == 1, done
    return done.stderr.decode()


def plant(node: DaemonNode, parent: str) -> tuple[str, str]:
    """An orphan of ours with a bundle, a cgroup with a process in it, a pin, an address; and a cgroup and address of somebody else."""
    ours, other = secrets.token_hex(32), secrets.token_hex(32)
    pod = node.root / "run" / "sandboxes" / ours
    bundle = pod / "containers" / ours
    bundle.mkdir(parents=True)
    (pod / "ns").mkdir()
    (pod / "ns" / "net").touch()
    (bundle / "config.json").write_text(json.dumps({"linux": {"cgroupsPath": f"{parent}/cri-bridge-{ours}"}}))
    for ident in (ours, other):
        cgroups.create(f"{parent}/cri-bridge-{ident}")
    for number, ident in ((200, ours), (201, other)):
        address = f"{node.subnets[0].rsplit('.', 1)[0]}.{number}"
        (node.root / "ipam" / node.name / address).write_text(f"{ident}\r\neth0")
    return ours, other


async def test_what_nobody_owns_is_told_and_removed_and_nothing_else(own_node: DaemonNode) -> None:
    node, parent = own_node, f"/{own_node.name}/planted"
    async with connect(node.socket) as cri:
        kubelet = Kubelet(node, cri, "runc")
        container = await kubelet.started(await kubelet.run(options=namespaces(pid=pb.NamespaceMode.POD)))
        assert await told(node, "doctor", "--leaks") == {"leaks": 0, "found": []}
        ours, other = await run_sync(plant, node, parent)
        process = subprocess.Popen(["sleep", "1000"])
        (cgroups.layout().directories(f"{parent}/cri-bridge-{ours}")[0] / "cgroup.procs").write_text(str(process.pid))
        found = await told(node, "doctor", "--leaks", "--all", code=1)
        kinds = {(leak["kind"], leak["certain"]) for leak in found["found"] if leak["id"] == ours}
        wanted = {"pod directory", "bundle", "namespace", "cgroup", "process", "address"}
        assert kinds == {(kind, True) for kind in wanted}, found
        assert {(leak["kind"], leak["certain"]) for leak in found["found"] if leak["id"] == other} == {("cgroup", False)}
        assert {leak["id"] for leak in found["found"] if leak["certain"]} == {ours}, "pods that run have an owner"
        assert any(one["name"] == "leaks" and one["state"] == "missing" for one in (await told(node, "check", code=1))["findings"])
        assert await told(node, "doctor", "--leaks", "--remove") == {"leaks": 0, "found": []}
        assert process.wait(10) == -9
        assert not (node.root / "run" / "sandboxes" / ours).exists()
        assert all(each.exists() for each in cgroups.layout().directories(f"{parent}/cri-bridge-{other}")), "another server's"
        leases = node.root / "ipam" / node.name
        assert [lease.name.rsplit(".", 1)[1] for lease in leases.iterdir() if lease.read_text().startswith((ours, other))] == ["201"]
        assert await kubelet.output(container, "echo alive") == "alive"
        await kubelet.clean()
    (leases / f"{node.subnets[0].rsplit('.', 1)[0]}.201").unlink()
    await run_sync(cgroups.remove, parent)


async def test_check_and_wipe_with_the_server_and_without(own_node: DaemonNode) -> None:
    node = own_node
    async with connect(node.socket) as cri:
        for handler in node.handlers:
            kubelet = Kubelet(node, cri, handler)
            await kubelet.started(await kubelet.run(options=namespaces(pid=pb.NamespaceMode.POD)))
        checked = await told(node, "check")
        assert {one["name"] for one in checked["findings"] if one["state"] == "ok"} >= {
            "version",
            "store",
            "monitor",
            "state.db",
            "copy",
            "leaks",
        }
        listed = await told(node, "wipe")
        assert (len(listed["pods"]), listed["removed"], listed["server"]) == (2, False, True)
        assert len((await cri.runtime.list_pod_sandbox()).items) == 2, "told, not done"
        assert (await told(node, "wipe", "--force"))["removed"]
        assert (await cri.runtime.list_pod_sandbox()).items == []
        for handler in node.handlers:
            kubelet = Kubelet(node, cri, handler)
            await kubelet.started(await kubelet.run(options=namespaces(pid=pb.NamespaceMode.POD)))
    node.kill()
    away = await told(node, "check")
    assert {one["name"]: one["state"] for one in away["findings"]}["server"] == "advice"
    assert await told(node, "doctor", "--leaks") == {"leaks": 0, "found": []}
    listed = await told(node, "wipe")
    assert (len(listed["pods"]), listed["removed"], listed["server"]) == (2, False, False)
    wiped = await told(node, "wipe", "--force", "--images")
    assert (wiped["failed"], wiped["state"], wiped["images"]) == (0, True, 2)
    assert not (node.root / "state" / "state.db").exists()
    assert not (node.root / "state" / "images").exists()
    assert not (node.root / "run" / "sandboxes").exists()
    await node.restart()
    async with connect(node.socket) as cri:
        assert (await cri.runtime.list_pod_sandbox()).items == []
        await node.import_images()
        kubelet = Kubelet(node, cri, "runc")
        assert await kubelet.output(await kubelet.started(await kubelet.run()), "echo new") == "new"
        await kubelet.clean()


async def test_removal_is_the_servers(own_node: DaemonNode) -> None:
    node = own_node
    second = node.root / "second.toml"
    second.write_text(node.config_file.read_text().replace(str(node.root / "state"), str(node.root / "second")))
    argv = [sys.executable, "-m", "bridge", "--config", str(second), "serve"]
    done = await run_sync(lambda: subprocess.run(argv, capture_output=True, env=environment(), timeout=60, check=False))
    assert (done.returncode, f"another cri-bridge server uses {node.root / 'run'}" in done.stderr.decode()) == (1, True), done
    node.stop()
    stranger = node.root / "run" / "sandboxes" / secrets.token_hex(32)
    stranger.mkdir()
    loose = [node.root / "run" / "runtimes" / "gone" / secrets.token_hex(32), node.root / "run" / "tty" / secrets.token_hex(16)]
    loose[0].mkdir(parents=True)
    loose[1].touch()
    assert len((await told(node, "doctor", "--leaks", code=1))["found"]) == 3
    assert "the server removes" in await refused(node, "doctor", "--leaks", "--remove")
    assert stranger.exists()
    assert "--remove goes with --leaks" in await refused(node, "doctor", "--remove")
    await node.restart()
    assert not any(path.exists() for path in (stranger, *loose)), "a start removes it"
    assert await told(node, "doctor", "--leaks") == {"leaks": 0, "found": []}
    loose[0].parent.rmdir()
