"""What is made at once is bounded, and one pod with much to make does not make the others wait."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable

import anyio
import pytest

from bridge.core.services import Services
from bridge.testing.fakes import FakeContainer, FakeSandbox
from tests.component.conftest import World, container, pod

pytestmark = pytest.mark.root


class Gate:
    """Holds calls of a fake until they are let through; ``inside`` are those that came, in turn."""

    def __init__(self) -> None:
        self.inside: list[str] = []
        self.most = 0
        self._working = 0
        self._open = anyio.Semaphore(0)

    def before(self, method: Callable[..., Awaitable[object]], name: Callable[..., str]) -> Callable[..., Awaitable[object]]:
        async def gated(*args: object) -> object:
            self.inside.append(name(*args))
            self._working += 1
            self.most = max(self.most, self._working)
            await self._open.acquire()
            self._working -= 1
            return await method(*args)

        return gated

    def let_through(self, count: int) -> None:
        for _ in range(count):
            self._open.release()


async def _until(true: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not true():
            await anyio.sleep(0.005)


async def test_fifty_creations_of_one_pod_starve_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.settings = {"concurrent_creates": 4}
    async with world.started() as core:
        greedy = await core.sandboxes.run(pod("greedy"), "")
        modest = await core.sandboxes.run(pod("modest"), "")
        gate = Gate()
        monkeypatch.setattr(FakeSandbox, "create_container", gate.before(FakeSandbox.create_container, lambda _self, spec: spec.sandbox_id))
        async with anyio.create_task_group() as group:
            for number in range(50):
                group.start_soon(core.containers.create, greedy.id, container(f"c{number}"))
            await _until(lambda: len(gate.inside) == 2 and core.load()["waiting_to_create"] == 48)
            group.start_soon(core.containers.create, modest.id, container())
            await _until(lambda: gate.inside[2:] == [modest.id])
            pod_made = anyio.Event()

            async def another_pod() -> None:
                await core.sandboxes.run(pod("late"), "")
                pod_made.set()

            group.start_soon(another_pod)
            with anyio.fail_after(20):
                await pod_made.wait()
            told = core.load()
            assert (told["at_once"], told["creating"], told["waiting_to_create"]) == (4, 3, 48)
            gate.let_through(51)
        assert gate.most <= 4
        assert len(core.containers.list(sandbox_id=greedy.id)) == 50
        assert core.load()["creating"] == 0


async def test_starts_are_bounded_and_one_that_waits_does_not_outlive_its_pod(core: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = await core.sandboxes.run(pod(), "")
    made = [await core.containers.create(sandbox.id, container(f"c{number}")) for number in range(10)]
    gate = Gate()
    monkeypatch.setattr(FakeContainer, "start", gate.before(FakeContainer.start, lambda self: self.id))
    failures: list[BaseException] = []

    async def start(ident: str) -> None:
        try:
            await core.containers.start(ident)
        except Exception as exc:  # noqa: BLE001 - looked at below
            failures.append(exc)

    async with anyio.create_task_group() as group:
        for found in made:
            group.start_soon(start, found.id)
        await _until(lambda: core.load()["waiting_to_start"] == 2 and len(gate.inside) == 8)
        group.start_soon(functools.partial(core.sandboxes.stop, sandbox.id))
        await _until(lambda: sandbox.id in core.live.stopping)
        gate.let_through(8)
    assert len(gate.inside) == 8, "what waited was never started"
    assert [str(failure).endswith("is being stopped") for failure in failures] == [True, True]
    await core.sandboxes.remove(sandbox.id)
