"""Checkpoints exchanged with a real podman, both ways, where there are one and a CRIU that works; PODMAN may name one not in PATH."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest
from anyio.to_thread import run_sync

from bridge._proto.bridge.admin import v1 as admin
from bridge._proto.runtime import v1 as pb
from bridge.host import mounts, namespaces
from bridge.testing.images import busybox_layer
from tests.integration.counting import COUNTING, count, missing
from tests.integration.daemon_fixtures import kubelet, node
from tests.integration.daemon_node import Kubelet, environment

__all__ = ["kubelet", "node"]
pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

PODMAN = shutil.which(os.environ.get("PODMAN", "podman"))
IMAGE = "localhost/exchanged:1"
_LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")
Podman = Callable[..., str]


@pytest.fixture
def handler() -> str:
    return "runc"  # podman restores by the runtime of the archive's name


@pytest.fixture
def podman() -> Iterator[Podman]:
    """Runs it on a store of the test's own; its containers are removed."""
    if PODMAN is None:
        pytest.skip("no podman: neither in PATH nor as PODMAN")
    top = tempfile.mkdtemp(prefix="cbt-podman-")  # its paths must be short
    places = [word for name in ("root", "runroot", "tmpdir") for word in (f"--{name}", f"{top}/{name}")]
    command = [PODMAN, *places, "--cgroup-manager=cgroupfs", "--events-backend=file", "--runtime", "runc"]

    def run(*words: str, content: bytes | None = None) -> str:
        done = subprocess.run([*command, *words], env=environment(), input=content, capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout.decode().strip()

    yield run
    run("rm", "--all", "--force", "--time", "0")
    run("rmi", "--all", "--force")
    mounts._unmount_tree(Path(top))
    shutil.rmtree(top)


async def test_an_archive_of_podman_and_one_for_it(kubelet: Kubelet, podman: Podman, tmp_path: Path) -> None:
    if why := await missing(kubelet.cri, kubelet.handler):
        pytest.skip(f"no checkpoints here: {why}")
    await run_sync(lambda: podman("import", "-", IMAGE, content=busybox_layer(Path("/bin/busybox"))))
    await run_sync(lambda: podman("save", "--quiet", "--output", str(tmp_path / "image.tar"), IMAGE))
    await kubelet.cri.admin.import_image(admin.ImportImageRequest(path=str(tmp_path / "image.tar")))
    pins = await namespaces.create(tmp_path / "ns", net=True, ipc=False, uts=False, hostname="", sysctls={})
    try:
        words = ("run", "--detach", "--name", "theirs", "--network", f"ns:{pins['net']}", *_LIMITS, IMAGE, "sh", "-c", COUNTING)
        await run_sync(lambda: podman(*words))
        before = await _above(podman, "theirs", 0)
        out = str(tmp_path / "theirs.tar.zst")
        await run_sync(lambda: podman("container", "checkpoint", "--leave-running", "--export", out, "theirs"))
        reached = await _above(podman, "theirs", 0)
        pod = await kubelet.run()
        again = await kubelet.create(pod, name="again", image=pb.ImageSpec(image=out))
        await kubelet.start(again)
        assert before <= await count(kubelet, again) <= reached + 100
        assert await kubelet.output(again, "cat /new; test -e /etc/group || echo gone") == "hi\ngone"
        ours = tmp_path / "ours.tar"
        request = pb.CheckpointContainerRequest(container_id=again, location=str(ours))
        await kubelet.cri.runtime.checkpoint_container(request)
        least = await count(kubelet, again)
        await kubelet.stop(again, 0)
        await run_sync(lambda: podman("container", "restore", "--import", str(ours), "--name", "ours"))
        assert before < await _above(podman, "ours", 0) <= least + 100
        state = json.loads(await run_sync(lambda: podman("inspect", "ours")))[0]["State"]
        assert (state["Running"], state["Restored"]) == (True, True)
    finally:
        await namespaces.remove(tmp_path / "ns")


async def _above(podman: Podman, name: str, least: int) -> int:
    with anyio.fail_after(30):
        while True:
            found = await run_sync(lambda: podman("exec", name, "cat", "/n"))
            if found.isdigit() and int(found) > least:
                return int(found)
            await anyio.sleep(0.1)
