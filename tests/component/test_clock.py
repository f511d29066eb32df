"""A clock that is set back or forth: what was made later is the later one, and no wait gets longer or shorter."""

from __future__ import annotations

import time

import anyio
import pytest

from bridge.core import stamps
from bridge.core.entities import ContainerState
from bridge.core.services import Services
from tests.component.conftest import container, pod

pytestmark = pytest.mark.root
_YEAR = 365 * 86400 * 10**9


class Clock:
    """The wall clock, ``off`` nanoseconds from the true time."""

    def __init__(self) -> None:
        self.off = 0
        self._true = time.time_ns

    def time_ns(self) -> int:
        return self._true() + self.off


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "time_ns", made.time_ns)
    monkeypatch.setattr(time, "time", lambda: made.time_ns() / 1e9)
    return made


async def test_the_order_of_what_happened_survives_a_clock_that_is_set_back(core: Services, clock: Clock) -> None:
    first = await core.sandboxes.run(pod(), "")
    before = await core.containers.create(first.id, container())
    clock.off = -_YEAR
    await core.containers.start(before.id)
    again = await core.containers.create(first.id, container("second"))
    await core.containers.stop(before.id, 1)
    found = core.containers.find(before.id)
    assert found.state is ContainerState.EXITED
    assert found.created_at < found.started_at <= found.finished_at
    assert again.created_at > before.created_at
    await core.sandboxes.stop(first.id)
    attempt = pod()
    second = await core.sandboxes.run(pod(metadata=attempt.metadata.__class__("web", "uid-web", "default", 1)), "")
    assert second.created_at > again.created_at, "the newest sandbox of a pod is its current one"
    stranger = await core.sandboxes.run(pod("other"), "")
    assert abs(stranger.created_at - time.time_ns()) < 60e9, "other pods have the clock's time"
    await core.sandboxes.remove(first.id)


@pytest.mark.parametrize("jump", [-_YEAR, _YEAR])
async def test_a_stop_keeps_its_deadline(core: Services, clock: Clock, jump: int) -> None:
    sandbox = await core.sandboxes.run(pod(), "")
    made = await core.containers.create(sandbox.id, container())
    await core.containers.start(made.id)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(core.containers.stop, made.id, 1)
            await anyio.sleep(0)
            clock.off = jump
    assert core.containers.find(made.id).state is ContainerState.EXITED


def test_a_stamp_is_later_than_all_before(clock: Clock) -> None:
    now = time.time_ns()
    assert stamps.after([]) >= now
    assert stamps.after([now + 10**12, 5]) == now + 10**12 + 1
