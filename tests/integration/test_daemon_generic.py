"""The plugin ``oci``, found by the server's own entry points, with a command line that needs every quirk; and plain runc and crun."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.to_thread import run_sync

from bridge._proto.runtime import v1 as pb
from bridge.client import CriError, connect
from bridge.config_docs import toml_value
from tests.conftest import LeakAudit
from tests.integration import odd_runtime
from tests.integration.daemon_node import IMAGE, DaemonNode, Kubelet, daemon_node, environment, namespaces

pytestmark = pytest.mark.root


def _table(name: str, options: dict[str, Any]) -> str:
    return f'[runtime.handlers.{name}]\nplugin = "oci"\noptions = {toml_value(options)}\n'


@pytest.fixture(scope="module")
def node(crun_hierarchy: None) -> Iterator[DaemonNode]:
    def prepare(root: Path) -> tuple[str, str]:
        odd = odd_runtime.write(root, "runc")
        tables = {"odd": {**odd_runtime.OPTIONS, "path": str(odd)}, "plain": {"path": "crun"}}
        tables["bare"] = {"path": "crun", "abilities": {"exec": False}, "flags": {"console": "", "resources": ""}, "trial": False}
        return "\n".join(_table(name, options) for name, options in tables.items()), ""

    with daemon_node(prepare=prepare) as made:
        anyio.run(_pause_once, made)
        yield made


async def _pause_once(node: DaemonNode) -> None:
    """Have each run a pod: what is made once and kept is there."""
    async with connect(node.socket) as cri:
        for handler in ("odd", "plain", "bare"):
            kubelet = Kubelet(node, cri, handler)
            await kubelet.started(await kubelet.run())
            await kubelet.clean()


def spec(node: DaemonNode, pod: str, container: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((node.root / "run/sandboxes" / pod / "containers" / container / "config.json").read_text())
    return found


async def test_a_whole_life_on_an_odd_command_line(node: DaemonNode, leak_audit: LeakAudit) -> None:
    leak_audit.watch(node.scope())
    async with connect(node.socket) as cri:
        kubelet = Kubelet(node, cri, "odd")
        pod = await kubelet.run(options=namespaces(pid=pb.NamespaceMode.POD))
        container = await kubelet.started(pod, options=namespaces(pid=pb.NamespaceMode.POD), memory=64 << 20)
        assert await kubelet.output(container, "echo hello; exit 0") == "hello"
        assert spec(node, pod, container)["annotations"]["example.com/odd"] == "yes"
        resources = pb.LinuxContainerResources(cpu_shares=512)
        await cri.runtime.update_container_resources(pb.UpdateContainerResourcesRequest(container_id=container, linux=resources))
        with pytest.raises(CriError, match="exit code 42"):
            await kubelet.exec(container, ["/no/such/command"])
        absent = await kubelet.create(pod, ["/no/such/command"], name="absent")
        with pytest.raises(CriError, match="exit code 42"):
            await kubelet.start(absent)
        assert (await kubelet.status(absent)).exit_code == 127
        await kubelet.clean()


async def test_runc_like_ones_need_a_path_alone(node: DaemonNode, leak_audit: LeakAudit) -> None:
    leak_audit.watch(node.scope())
    async with connect(node.socket) as cri:
        kubelet = Kubelet(node, cri, "plain")
        pod = await kubelet.run()
        container = await kubelet.started(pod)
        assert await kubelet.output(container, "echo hello") == "hello"
        await kubelet.clean()


async def test_what_the_options_say_is_missing_is_refused_with_that_reason(node: DaemonNode, leak_audit: LeakAudit) -> None:
    leak_audit.watch(node.scope())
    async with connect(node.socket) as cri:
        kubelet = Kubelet(node, cri, "bare")
        pod = await kubelet.run()
        container = await kubelet.started(pod)
        with pytest.raises(CriError, match=r"config\.tty: this handler can't do it \(its command line has no flag for it"):
            await kubelet.create(pod, name="terminal", tty=True)
        with pytest.raises(CriError, match="its handler's options say that it can't"):
            await kubelet.exec(container, "true")
        resources = pb.LinuxContainerResources(cpu_shares=512)
        with pytest.raises(CriError, match="this handler can't change the resources of a container"):
            await cri.runtime.update_container_resources(pb.UpdateContainerResourcesRequest(container_id=container, linux=resources))
        await kubelet.clean()


async def test_the_spec_is_shown_without_a_pod(node: DaemonNode, leak_audit: LeakAudit, tmp_path: Path) -> None:
    leak_audit.watch(node.scope())
    pod = {"metadata": {"name": "p", "namespace": "default", "uid": "u"}, "hostname": "p", "log_directory": "/logs"}
    container = {"metadata": {"name": "c"}, "image": {"image": IMAGE}, "command": ["true"], "envs": [{"key": "A", "value": "b"}]}
    for name, content in (("pod", pod), ("ctr", container)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    words = ["handlers", "spec", "odd", "--pod", str(tmp_path / "pod.json"), "--container", str(tmp_path / "ctr.json")]

    def show(*more: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "bridge", *words, "--socket", str(node.socket), *more]
        return subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=60, check=False)

    done = await run_sync(show)
    assert done.returncode == 0, done.stderr
    final = json.loads(done.stdout)
    assert final["annotations"]["example.com/odd"] == "yes"
    assert "A=b" in final["process"]["env"]
    assert "# handler odd changed\n" in done.stderr
    assert '+    "example.com/odd": "yes"' in done.stderr
    (tmp_path / "ctr.json").write_text(json.dumps({**container, "tty": "yes"}))
    done = await run_sync(show)
    assert (done.returncode, done.stdout) == (1, "")
    assert "ctr.json.tty: must be true or false, not 'yes'" in done.stderr
