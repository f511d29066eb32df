"""Every fault of a registry, at once, against one server: each pull gets its code and its words, honest pulls beside them succeed,
and nothing is left in the store."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import anyio
import pytest
from aiohttp import web

from bridge._proto.runtime import v1 as pb
from bridge.client import CriClient, CriError, connect
from tests.integration.daemon_node import DaemonNode, daemon_node
from tests.integration.image_faults import LAYER_LIMIT, Case, cases, honest, put
from tests.integration.registry_node import REGISTRY, Proxy, proxy, registry

pytestmark = [pytest.mark.root, pytest.mark.skipif(not REGISTRY.exists(), reason="needs Debian's docker-registry")]

_HONEST = 3
_SETTINGS = f"""
[images]
parallel_downloads = 64
stall_timeout = 1.5
minimum_rate = 1000
minimum_rate_window = 1.0
abandoned_pull_timeout = 0.2
max_layer = {LAYER_LIMIT}
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as directory, registry(Path(directory) / "registry") as host:
        yield host


@pytest.fixture(scope="module")
def pulling_node(crun_hierarchy: None) -> Iterator[DaemonNode]:
    with daemon_node(handlers={"runc": "runc"}, prepare=lambda root: (_SETTINGS, "")) as made:
        yield made


def contents(node: DaemonNode) -> tuple[set[str], set[str]]:
    """The names of the committed layers, and of what is on its way in or out."""
    images = node.root / "state" / "images"
    return set(os.listdir(images / "layers")), set(os.listdir(images / "tmp"))


def children(node: DaemonNode) -> list[str]:
    assert node.process is not None
    tasks = Path(f"/proc/{node.process.pid}/task").glob("*/children")
    return [pid for task in tasks for pid in task.read_text().split()]


async def fill(hub: str, every: Mapping[str, Case]) -> None:
    async with anyio.create_task_group() as group:
        for name, case in every.items():
            group.start_soon(put, hub, f"f/{name}", case.image or honest())
        for number in range(_HONEST):
            group.start_soon(put, hub, f"f/honest-{number}", honest())


def misbehave(front: Proxy, every: Mapping[str, Case]) -> None:
    async def fault(request: web.Request) -> web.StreamResponse | None:
        if request.path == "/token":
            return web.json_response({"token": request.query["is"]})
        _, _, _, name, kind, *_ = request.path.split("/")
        case = every.get(name)
        answer = getattr(case, kind) if case is not None else None
        return None if answer is None else await answer(request, await front.body(request))

    front.fault = fault


async def pull(cri: CriClient, front: Proxy, name: str) -> CriError | None:
    spec = pb.ImageSpec(image=f"{front.host}/f/{name}:v1")
    try:
        await cri.image.pull_image(pb.PullImageRequest(image=spec))
    except CriError as exc:
        return exc
    return None


def judged(name: str, case: Case, outcome: CriError | None) -> str:
    """What is wrong with an outcome; "" when nothing is."""
    if outcome is None or case.code is None:
        return "" if outcome is None and case.code is None else f"{name}: {outcome or 'was pulled'}"
    if outcome.code is case.code and re.search(case.words, outcome.message):
        return ""
    return f"{name}: {outcome.code.name} {outcome.message}\n   wanted {case.code.name} {case.words}"


async def test_each_fault_has_its_code_and_words_and_leaves_nothing(hub: str, pulling_node: DaemonNode) -> None:
    every = cases()
    await fill(hub, every)
    before = contents(pulling_node)
    problems: list[str] = []
    pulled = {name for name, case in every.items() if case.code is None} | {f"honest-{number}" for number in range(_HONEST)}
    async with proxy(hub) as front, connect(pulling_node.socket) as cri:
        misbehave(front, every)

        async def one(name: str, case: Case) -> None:
            problems.extend(filter(None, [judged(name, case, await pull(cri, front, name))]))

        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                for name, case in every.items():
                    group.start_soon(one, name, case)
                for number in range(_HONEST):
                    group.start_soon(one, f"honest-{number}", Case(None, ""))
        assert not problems, "\n".join(problems)
        images = (await cri.image.list_images(pb.ListImagesRequest())).images
        assert {tag.rpartition("/")[2] for image in images for tag in image.repo_tags if "/f/" in tag} == {f"{name}:v1" for name in pulled}
        status = await cri.runtime.status(pb.StatusRequest(verbose=True))
        assert json.loads(status.info["pulls"]) == []
        await nothing_left(pulling_node, len(before[0]) + len(pulled))
        for name in pulled:
            await cri.image.remove_image(pb.RemoveImageRequest(image=pb.ImageSpec(image=f"{front.host}/f/{name}:v1")))
        await nothing_left(pulling_node, len(before[0]))


async def nothing_left(node: DaemonNode, layers: int) -> None:
    """So many layers, nothing on its way in or out, no process."""
    with anyio.fail_after(30):
        while (found := contents(node)) and (found[1] or len(found[0]) != layers or len(children(node)) > 0):
            await anyio.sleep(0.05)
