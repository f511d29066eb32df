"""Failpoints: each wait is met once, under its place's name; holding, failing, cancelling; nothing happens without a plan."""

from __future__ import annotations

import asyncio
import os
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import anyio
import anyio.lowlevel
import pytest

from bridge.aio import Supervisor
from bridge.errors import HostError
from bridge.host import files
from bridge.images import ownership
from bridge.plugins import ENTRY_POINTS
from bridge.testing import failpoints
from bridge.testing.failpoints import INJECTED, Control, Watched, Watcher, interrupt


async def work(done: list[str], lock: anyio.Lock) -> str:
    for name in ("first", "second"):
        await anyio.lowlevel.checkpoint()
        done.append(name)
    async with lock:
        done.append("locked")
    return "result"


async def test_each_wait_is_interrupted_by_its_number() -> None:
    for how in get_args(failpoints.How):
        ends: list[list[str]] = []
        for at in range(1, 10):
            done: list[str] = []
            reached = await interrupt(lambda: work(done, anyio.Lock()), at, how)  # noqa: B023
            ends.append(done)
            if not reached:
                break
        assert ends[:2] == [[], ["first"]], how
        assert ends[-1] == ["first", "second", "locked"], how


async def test_an_installed_plugins_awaits_are_points_too(monkeypatch: pytest.MonkeyPatch) -> None:
    space: dict[str, Any] = {"__name__": "acme.runtime", "lowlevel": anyio.lowlevel}
    # A module of somebody else.
    exec("async def start():\n    await lowlevel.checkpoint()", space)
    found: list[list[str]] = []
    points = (metadata.EntryPoint("acme", "acme.runtime:plugin", ENTRY_POINTS),)
    for installed in ((), points):
        monkeypatch.setattr(metadata, "entry_points", lambda *, group, installed=installed: installed if group == ENTRY_POINTS else ())
        failpoints._packages.cache_clear()
        places: list[str] = []
        await Watched(space["start"](), Watcher(begun=places.append))
        found.append(places)
    failpoints._packages.cache_clear()
    assert found == [[""], ["acme.runtime:start:2~"]]


async def test_what_the_work_itself_raises_comes_out() -> None:
    async def broken() -> None:
        await anyio.lowlevel.checkpoint()
        raise HostError("its own")

    with pytest.raises(HostError, match="its own"):
        await interrupt(broken, 99, "fail")


async def test_the_work_keeps_its_result_and_its_errors(tmp_path: Path) -> None:
    assert await Watched(work([], anyio.Lock()), Watcher()) == "result"
    with pytest.raises(HostError):
        await Watched(files.read_text(tmp_path), Watcher())


async def test_places_are_of_our_own_code_and_say_where_nothing_can_fail(tmp_path: Path) -> None:
    places: list[str] = []
    await Watched(files.make_dir(tmp_path / "made", 0o700), Watcher(begun=places.append))
    assert places
    assert all(place.startswith("bridge.host.files:make_dir:") for place in places)
    places.clear()
    async with Supervisor() as supervisor:
        event = anyio.Event()
        supervisor.spawn("set", lambda: _set(event))

        async def waits() -> None:
            await failpoint_free_wait(event)

        await Watched(waits(), Watcher(begun=places.append))
    assert set(places) == {""}, "a test's own code is no place of the product"


async def test_places_within_a_context_manager_are_its_own(tmp_path: Path) -> None:
    places: list[str] = []

    async def work() -> None:
        with pytest.raises(HostError):
            async with ownership.pinned(tmp_path):  # which is no namespace
                pass

    await Watched(work(), Watcher(begun=places.append))
    assert places
    assert {place.rpartition(":")[0] for place in places} == {"bridge.images.ownership:pinned"}, "entered by a step of a generator"


async def _set(event: anyio.Event) -> None:
    event.set()


async def failpoint_free_wait(event: anyio.Event) -> None:
    await event.wait()


async def scenario(control: Control, tmp_path: Path) -> None:
    """A task of a watched loop that makes two directories."""
    await files.make_dir(tmp_path / "one", 0o700)
    await files.make_dir(tmp_path / "two", 0o700)
    del control


def test_a_server_records_holds_and_fails_as_it_is_told(tmp_path: Path) -> None:
    control = Control(tmp_path)

    async def served() -> None:
        failpoints.install(str(tmp_path))
        control.record()
        await asyncio.get_running_loop().create_task(scenario(control, tmp_path))
        points = [point for point in control.points() if "~" not in point]
        assert [point.rpartition("#")[2] for point in points if "#" in point] == ["2"], "each directory came there once"
        control.arm(points[-1], fail=True)
        with pytest.raises(HostError, match=INJECTED):
            await asyncio.get_running_loop().create_task(scenario(control, tmp_path))
        await asyncio.get_running_loop().create_task(scenario(control, tmp_path))  # once only
        control.arm(points[0])
        held = asyncio.get_running_loop().create_task(scenario(control, tmp_path))
        with anyio.fail_after(10):
            while not control.held:
                await anyio.sleep(0.005)
        assert not held.done()
        control.release()
        with anyio.fail_after(10):
            await held

    asyncio.run(served())


def test_without_the_variable_nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(failpoints.ENVIRONMENT, raising=False)

    async def served() -> None:
        assert asyncio.get_running_loop().get_task_factory() is None

    asyncio.run(failpoints.watched_if_asked(served()))


def test_the_server_itself_is_watched_from_its_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(failpoints.ENVIRONMENT, str(tmp_path))
    control = Control(tmp_path)
    control.record()
    asyncio.run(failpoints.watched_if_asked(files.make_dir(tmp_path / "one", 0o700)))
    assert any(point.startswith("bridge.host.files:make_dir:") for point in control.points())
    assert failpoints.ENVIRONMENT not in os.environ


def test_turns_are_counted_from_when_something_is_to_happen(tmp_path: Path) -> None:
    """A loop of a server that is hours old is interrupted as one that has just begun."""
    control = Control(tmp_path)

    async def often(turns: int) -> None:
        for number in range(turns):
            await files.make_dir(tmp_path / f"{number}", 0o700)
            if number == turns - 3:
                control.arm(point, fail=True)

    async def served() -> None:
        failpoints.install(str(tmp_path))
        with pytest.raises(HostError, match=INJECTED):
            await asyncio.get_running_loop().create_task(often(20))

    control.record()
    asyncio.run(_recorded(tmp_path))
    point = next(each for each in control.points() if "~" not in each and "#" not in each)
    control.disarm()
    asyncio.run(served())


async def _recorded(tmp_path: Path) -> None:
    failpoints.install(str(tmp_path))
    await asyncio.get_running_loop().create_task(files.make_dir(tmp_path / "first", 0o700))
