"""A real Prometheus scrapes the endpoint of a whole core: it takes the page, and every query of the dashboard has an answer."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlencode

import anyio
import pytest
from anyio.to_thread import run_sync

from bridge._proto.runtime import v1 as pb
from bridge.client import CriClient, CriError
from bridge.config import Config
from bridge.core.entities import ContainerState
from bridge.core.services import Services
from bridge.daemon_metrics import told
from bridge.errors import BridgeError
from bridge.images.progress import Board, Wanted
from bridge.testing.fakes import FakeBackend
from bridge.testing.registry import free_port
from tests.component.conftest import World, container, pod
from tests.component.test_events import served, until
from tests.component.test_server_metrics import LINK, STREAMS

DOCS = Path(__file__).parents[2] / "docs"
CHOSEN = {"$__rate_interval": "1m", "$instance": ".+", "$job": ".+"}
PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(None in (PROMETHEUS, PROMTOOL), reason="needs prometheus and promtool: Debian's package prometheus"),
]


class Pulls:
    """An image store that only tells of pulls."""

    def __init__(self) -> None:
        self.board = Board(lambda chain_id: False)

    def watch_pulls(self, watcher: Any) -> None:
        self.board.watcher = watcher

    def progress(self) -> tuple[()]:
        return ()

    async def pull(self) -> None:
        async def chunks() -> AsyncGenerator[bytes]:
            yield b"12345"

        with self.board.pull("registry.example.com/app:1") as shown:
            shown.announce([Wanted("top", "sha256:b", 5)])
            assert [chunk async for chunk in self.board.counted("top", chunks())]
            self.board.landed("top")
        with pytest.raises(ValueError, match="no such"), self.board.pull("registry.example.com/absent:1"):
            raise ValueError("no such image")


async def work(core: Services, world: World, cri: CriClient, pulls: Pulls, name: str) -> None:
    """A bit of all that is counted; the second time rates have something to grow from."""
    await pulls.pull()
    sandbox = await core.sandboxes.run(pod(name), "")
    backend: FakeBackend = world.backend
    for what, code in (("done", 0), ("oom", 137)):
        ident = (await core.containers.create(sandbox.id, container(what))).id
        await core.containers.start(ident)
        backend.containers[ident].exit(code, 9 if code else 0, oom=what == "oom")
        await until(lambda ident=ident: core.store.containers[ident].state is ContainerState.EXITED)
        await cri.runtime.container_status(pb.ContainerStatusRequest(container_id=ident))
    backend.faults.fail_on.add("create_container")
    with pytest.raises(BridgeError):
        await core.containers.create(sandbox.id, container("fails"))
    with pytest.raises(CriError):
        await cri.runtime.container_status(pb.ContainerStatusRequest(container_id="absent"))
    with pytest.raises(CriError):
        await cri.runtime.run_pod_sandbox(pb.RunPodSandboxRequest())
    await cri.runtime.run_pod_sandbox(
        pb.RunPodSandboxRequest(
            config=pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="p", uid=sandbox.id, namespace="n")),
            runtime_handler=sandbox.handler,
        )
    )


@asynccontextmanager
async def prometheus(directory: Path, target: int) -> AsyncIterator[str]:
    """The URL of one that scrapes ``target`` on the loopback twice a second."""
    port = free_port()
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"},
        "rule_files": [str(DOCS / "prometheus" / "cri-bridge.rules.yml")],
        "scrape_configs": [{"job_name": "cri-bridge", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}],
    }
    (directory / "prometheus.yml").write_text(json.dumps(config))
    argv = [str(PROMETHEUS), f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data"]
    argv += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            await run_sync(process.wait, 20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def asked(url: str) -> Any:
    """Prometheus' answer, nothing while it does not answer."""

    def ask() -> Any:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except (ConnectionError, urllib.error.URLError) as exc:
            if isinstance(exc, urllib.error.HTTPError) and exc.code == 400:
                raise AssertionError(exc.read().decode()) from exc
            return None

    return await run_sync(ask)


async def answered(url: str, query: str) -> list[Any]:
    for name, value in CHOSEN.items():
        query = query.replace(name, value)
    found = await asked(f"{url}/api/v1/query?{urlencode({'query': query})}")
    return [] if found is None else list(found["result"])


@pytest.mark.timeout(180)
async def test_prometheus_takes_the_page_and_answers_all_of_the_dashboard(core: Services, world: World, tmp_path: Path) -> None:
    port, pulls = free_port(), Pulls()
    config = Config.model_validate({"metrics": {"address": f"127.0.0.1:{port}"}})
    panels = json.loads((DOCS / "grafana" / "cri-bridge.json").read_text("utf-8"))["panels"]
    queries = {target["expr"] for panel in panels for target in panel.get("targets", ())}
    async with served(core, tmp_path / "cri.sock") as (server, cri), prometheus(tmp_path, port) as url:
        async with told(config, core, cast("Any", pulls), cast("Any", LINK), cast("Any", STREAMS), server):
            await work(core, world, cri, pulls, "first")
            with anyio.fail_after(60):
                while not await answered(url, "cri_bridge_build_info"):
                    await anyio.sleep(0.1)
            await work(core, world, cri, pulls, "second")
            silent = queries
            with anyio.move_on_after(60):
                while silent:
                    await anyio.sleep(0.1)
                    silent = {query for query in silent if not await answered(url, query)}
            assert silent == set(), "no data"
            health = {"unknown"}
            with anyio.fail_after(60):
                while "unknown" in health:  # not evaluated yet
                    await anyio.sleep(0.1)
                    groups = (await asked(f"{url}/api/v1/rules"))["groups"]
                    health = {rule["health"] for group in groups for rule in group["rules"]}
            assert health == {"ok"}
            page = await run_sync(lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20).read())
            checked = await anyio.run_process([str(PROMTOOL), "check", "metrics"], input=page, check=False)
            assert (checked.returncode, checked.stdout + checked.stderr) == (0, b""), "promtool has something to say"
