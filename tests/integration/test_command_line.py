"""The verbs of the command against a real server, and the demo as a person runs it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bridge._proto.runtime import v1 as pb
from bridge.cli.demo_host import DemoHost, private_host, running_server
from bridge.client import connect
from bridge.config import Config
from bridge.config_files import load
from bridge.testing.images import write_busybox_layout
from tests.conftest import LeakAudit

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("crun_hierarchy")]


@pytest.fixture
async def host(leak_audit: LeakAudit) -> AsyncIterator[DemoHost]:
    """A private host with a running server; what pods took must be given back when the test ends."""
    async with private_host() as host:
        host.prepare(Config())
        config = load([host.config_file])
        async with running_server(host, config) as pid:
            leak_audit.watch(host.scope([pid]))
            yield host


async def command(*words: str, code: int = 0) -> str:
    """Standard output of ``cri-bridge`` with ``words``; its exit code must be ``code``."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bridge", *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=dict(os.environ)
    )
    out, err = await process.communicate()
    assert process.returncode == code, out.decode() + err.decode()
    return out.decode() + (err.decode() if code else "")


async def in_json(host: DemoHost, *words: str) -> Any:
    return json.loads(await command("--config", str(host.config_file), *words, "-o", "json"))


async def test_images_are_imported_listed_and_removed(host: DemoHost, tmp_path: Path) -> None:
    await asyncio.to_thread(write_busybox_layout, tmp_path / "layout", "localhost/tool:1")
    (imported,) = await in_json(host, "image", "import", str(tmp_path / "layout"))
    assert imported["tags"] == ["localhost/tool:1"]
    (listed,) = await in_json(host, "image", "list")
    assert listed["id"] == imported["id"]
    table = await command("--config", str(host.config_file), "image", "list")
    assert re.search(r"^localhost/tool:1 +[0-9a-f]{13} +[\d.]+ MiB$", table, re.MULTILINE)
    await command("--config", str(host.config_file), "image", "rm", "localhost/tool:1", "localhost/never-there:1")
    assert await in_json(host, "image", "list") == []


async def test_handlers_tell_version_and_default(host: DemoHost) -> None:
    handlers = {one["name"]: one for one in await in_json(host, "handlers")}
    assert handlers["runc"]["enabled"]
    assert handlers["runc"]["default"]
    assert "runc" in handlers["runc"]["version"]
    assert handlers["runc"]["abilities"]["exec"] == "supported"


async def test_a_pods_trace(host: DemoHost) -> None:
    config = load([host.config_file])
    async with connect(config.server.socket) as client:
        metadata = pb.PodSandboxMetadata(name="traced", namespace="default", uid="traced-1")
        sandbox = pb.PodSandboxConfig(metadata=metadata, linux=pb.LinuxPodSandboxConfig(cgroup_parent=f"/{host.name}"))
        pod = (await client.runtime.run_pod_sandbox(pb.RunPodSandboxRequest(config=sandbox))).pod_sandbox_id
        trace = await in_json(host, "trace", pod[:8])
        assert trace["pod"] == pod
        assert "cni add" in [span["name"] for span in trace["spans"]]
        picture = await command("--config", str(host.config_file), "trace", pod)
        assert re.search(r"^  cni add +[\d.]+ +[▏▎▍▌▋▊▉█]+$", picture, re.MULTILINE)
        await client.runtime.stop_pod_sandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod))
        await client.runtime.remove_pod_sandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))
        assert "NOT_FOUND" in await command("--config", str(host.config_file), "trace", pod, code=1)


async def test_server_errors_reach_the_person(host: DemoHost) -> None:
    said = await command("--config", str(host.config_file), "image", "import", "/nonexistent", code=1)
    assert said.startswith("cri-bridge: ")
    assert "/nonexistent" in said


async def test_a_second_server_on_the_same_state_is_refused(host: DemoHost) -> None:
    said = await command("--config", str(host.config_file), "serve", code=1)
    assert "another cri-bridge server uses" in said


async def test_the_demo_shows_every_enabled_handler_and_leaves_nothing() -> None:
    said = await command("demo")
    for handler in re.findall(r"✓ (\w+): ", said):
        assert f"A pod on handler {handler}" in said
    assert said.count("hello from the first container") >= 1
    assert "after the end" in said.lower()
    assert "left behind" not in said


async def test_a_running_server_is_tested_and_left_as_it_was(host: DemoHost, tmp_path: Path) -> None:
    given = ["--config", str(host.config_file), "--socket", str(load([host.config_file]).server.socket), "--slowness", "3"]
    only = ["--only", "exit-codes", "--only", "server-is-killed"]
    report = json.loads(await command("conform", "runc", *given, *only, "--report", "json"))
    outcomes = {result["spec"]: result["outcome"] for result in report["results"]}
    assert outcomes == {"exit-codes": "passed", "server-is-killed": "impossible"}
    async with connect(load([host.config_file]).server.socket) as cri:
        assert (await cri.runtime.list_pod_sandbox(pb.ListPodSandboxRequest())).items == []
        assert (await cri.image.list_images(pb.ListImagesRequest())).images == []
    nobody = ["conform", "runc", "--config", str(host.config_file), "--socket", str(tmp_path / "none.sock"), "--only", "exit-codes"]
    assert f"no server answers on {tmp_path}/none.sock" in await command(*nobody, code=1)
