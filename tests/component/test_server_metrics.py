"""The metrics endpoint over a whole core: what a scrape of its socket says after some RPCs."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio
import pytest
from prometheus_client.parser import text_string_to_metric_families

from bridge._proto.runtime import v1 as pb
from bridge.api.server import GrpcServer
from bridge.client import CriError
from bridge.config import Config
from bridge.core.services import Services
from bridge.daemon_metrics import told
from bridge.errors import ConfigError, HostError
from bridge.testing.fakes import FakeBackend
from tests.component.conftest import World, container, pod
from tests.component.test_events import served, until

pytestmark = pytest.mark.root
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
IMAGES = SimpleNamespace(progress=tuple, watch_pulls=lambda watcher: None)
LINK = SimpleNamespace(fault="", losses={"died": 1, "hung": 0})
STREAMS = SimpleNamespace(sessions=2, waiting=0)


async def scrape(path: Path) -> Samples:
    answer = b""
    with anyio.fail_after(30):
        async with await anyio.connect_unix(path) as stream:
            await stream.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            async for chunk in stream:
                answer += chunk
    head, _, page = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    families = text_string_to_metric_families(page.decode())
    return {(each.name, frozenset(each.labels.items())): each.value for family in families for each in family.samples}


def of(found: Samples, name: str, **labels: str) -> float | None:
    return found.get((name, frozenset(labels.items())))


def parts() -> tuple[Any, Any, Any]:
    return cast("Any", IMAGES), cast("Any", LINK), cast("Any", STREAMS)


async def test_a_scrape_tells_what_was_done(core: Services, world: World, tmp_path: Path) -> None:
    config = Config.model_validate({"metrics": {"socket": str(tmp_path / "metrics.sock")}})
    async with served(core, tmp_path / "cri.sock") as (server, cri), told(config, core, *parts(), server):
        sandbox = await core.sandboxes.run(pod(), "")
        ident = (await core.containers.create(sandbox.id, container())).id
        await core.containers.start(ident)
        backend: FakeBackend = world.backend
        backend.containers[ident].exit(137, 9, oom=True)
        await until(lambda: core.store.containers[ident].reason == "OOMKilled")
        await cri.runtime.container_status(pb.ContainerStatusRequest(container_id=ident))
        with pytest.raises(CriError):
            await cri.runtime.container_status(pb.ContainerStatusRequest(container_id="absent"))
        await core.store.late.commit("refused", lambda db: db.execute("INSERT INTO nowhere VALUES (1)"), fact=True)
        found = await scrape(tmp_path / "metrics.sock")
        handler = sandbox.handler
        assert of(found, "cri_bridge_rpcs_total", rpc="ContainerStatus", handler=handler, code="OK") == 1
        assert of(found, "cri_bridge_rpcs_total", rpc="ContainerStatus", handler="", code="NOT_FOUND") == 1
        assert of(found, "cri_bridge_rpc_duration_seconds_count", rpc="ContainerStatus", handler=handler) == 1
        assert of(found, "cri_bridge_phase_duration_seconds_count", operation="RunPodSandbox", phase="cni add") == 1
        assert of(found, "cri_bridge_phase_duration_seconds_count", operation="StartContainer", phase="total") == 1
        assert of(found, "cri_bridge_container_oom_kills_total", handler=handler) == 1
        assert of(found, "cri_bridge_pods", handler=handler, state="ready") == 1
        assert of(found, "cri_bridge_containers", state="exited") == 1
        assert of(found, "cri_bridge_handler_enabled", handler=handler) == 1
        assert of(found, "cri_bridge_stream_sessions") == 2
        assert of(found, "cri_bridge_monitor_up") == 1
        assert of(found, "cri_bridge_monitor_losses_total", kind="died") == 1
        assert of(found, "cri_bridge_event_queue_length") == 0
        assert of(found, "cri_bridge_records_unwritten") == 1
        assert not {value for _, labels in found for _, value in labels} & {sandbox.id, ident}, "no label is an id"
    assert not (tmp_path / "metrics.sock").exists()


async def test_nothing_is_observed_unless_it_is_configured(core: Services) -> None:
    async with GrpcServer([]) as server, told(Config(), core, *parts(), server):
        assert (server.observer, core.traces.observer) == (None, None)


async def test_an_address_that_is_taken_is_named(core: Services) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config = Config.model_validate({"metrics": {"address": address}})
        async with GrpcServer([]) as server:
            with pytest.raises(HostError, match=rf"metrics.address: can't listen on {address}"):
                async with told(config, core, *parts(), server):
                    pytest.fail("it began")


async def test_a_missing_package_is_named(core: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = Config.model_validate({"metrics": {"socket": str(tmp_path / "metrics.sock")}})
    async with GrpcServer([]) as server:
        with pytest.raises(ConfigError, match=r"install cri-bridge\[metrics\]"):
            async with told(config, core, *parts(), server):
                pytest.fail("it began")
