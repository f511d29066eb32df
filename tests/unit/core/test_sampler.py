"""What the sampler reads and what it answers from memory, over a tree of files and fake backends."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from bridge.core import sampler as module
from bridge.core.looks import Look, Target
from bridge.core.pace import SamplerSettings
from bridge.core.sampler import Sampler
from bridge.errors import HostError
from bridge.host.cgroup_details import CgroupDetails
from bridge.host.cgroup_paths import CgroupLayout, CgroupMount
from bridge.host.cgroup_reader import CgroupReader
from bridge.host.cgroup_stats import CgroupStats
from bridge.ports.runtime import ContainerHandle


class Reader(CgroupReader):
    """Counts the looks."""

    def __init__(self, root: Path) -> None:
        super().__init__(on=CgroupLayout({"": CgroupMount(root)}))
        self.looks: list[str] = []

    def read(self, cgroup: str, *, detailed: bool = False, keep_open: bool = True) -> tuple[CgroupStats, CgroupDetails | None]:
        self.looks.append(cgroup)
        return super().read(cgroup, detailed=detailed, keep_open=keep_open)


class Backend:
    """A container that only its backend knows; ``told`` is what it says, or raises. Answers when ``open``."""

    def __init__(self, told: CgroupStats | Exception | None) -> None:
        self.told = told
        self.asked = 0
        self.now = self.most = 0
        self.open = anyio.Event()
        self.open.set()

    async def stats(self) -> CgroupStats | None:
        self.asked += 1
        await self.open.wait()
        if isinstance(self.told, Exception):
            raise self.told
        return self.told

    def target(self, ident: str) -> Target:
        return Target(ident, backend=cast("ContainerHandle", self))


class World:
    """A node of files."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.root = root
        self.reader = Reader(root)
        self.targets: list[Target] = []
        self.sampler = Sampler(lambda: self.targets, SamplerSettings(**{"period": 1000.0, "idle": 1000.0, **settings}), self.reader)

    def add(self, name: str, cpu: int = 5) -> Target:
        (self.root / name).mkdir(exist_ok=True)
        (self.root / name / "cpu.stat").write_text(f"usage_usec {cpu}\n")
        target = Target(name, f"/{name}")
        if target not in self.targets:
            self.targets.append(target)
        return target

    async def cpu(self, *targets: Target, **how: bool) -> list[int | None]:
        found = await self.sampler.samples(targets or self.targets, **how)
        return [None if (look := found[ident].cgroup) is None else look.cpu_ns for ident in found]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_a_list_answers_from_what_was_read_and_one_that_is_named_is_read_now(world: World) -> None:
    one, _ = world.add("one"), world.add("two")
    assert await world.cpu() == [5000, 5000]
    world.add("one", 6)
    assert await world.cpu() == [5000, 5000]
    assert world.reader.looks == ["/one", "/two"]
    assert await world.cpu(one, fresh=True) == [6000]
    assert await world.cpu() == [6000, 5000]
    assert world.reader.looks == ["/one", "/two", "/one"]
    world.add("three")
    assert await world.cpu() == [6000, 5000, 5000], "what began since is read at once"
    await world.sampler._close()


async def test_what_is_older_than_a_period_is_read_again(tmp_path: Path) -> None:
    world = World(tmp_path, period=0.0)
    target = world.add("one")
    await world.sampler._read([target], 0.0, detailed=False)
    await anyio.sleep(0)
    world.add("one", 6)
    assert (await world.sampler.samples([target], fresh=False)) == {} or await world.cpu() == [6000]
    assert world.reader.looks.count("/one") > 1
    await world.sampler._close()


async def test_many_questions_at_once_are_one_look(world: World) -> None:
    world.add("one")
    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(world.cpu)
    assert world.reader.looks == ["/one"]
    await world.sampler._close()


async def test_who_asks_while_one_looks_shares_the_next_look(world: World) -> None:
    """Single ones are read at the moment of the question: a look that has begun before it does not count."""
    target = world.add("one")
    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(lambda: world.cpu(target, fresh=True))
    assert len(world.reader.looks) <= 2
    await world.sampler._close()


async def test_details_are_read_for_who_asks_for_them(world: World) -> None:
    target = world.add("one")
    assert (await world.sampler.samples([target]))["one"].details is None
    assert (await world.sampler.samples([target], detailed=True))["one"].details is not None
    assert (await world.sampler.samples([target]))["one"].details is not None
    assert len(world.reader.looks) == 2
    await world.sampler._close()


@pytest.mark.parametrize("chosen", [True, False])
async def test_processes_are_counted_of_containers_and_for_who_wants_details(tmp_path: Path, chosen: bool) -> None:
    world = World(tmp_path, count_processes=chosen)
    pod, container = world.add("pod"), replace(world.add("one"), pid=os.getpid())
    for each in ("pod", "one"):
        (tmp_path / each / "cgroup.procs").write_text(f"{os.getpid()}\n")
    assert (await world.sampler.samples([container]))["one"].processes is None
    found = await world.sampler.samples([pod, container], detailed=True)
    assert found["pod"].processes is None
    counts = found["one"].processes
    assert (counts is not None and counts.processes == 1) == chosen
    await world.sampler._close()


async def test_a_round_forgets_what_ended_and_closes_its_files(world: World) -> None:
    world.add("one")
    world.add("two")
    await world.sampler._files_round()
    assert world.sampler.open_files == 2
    await world.cpu()
    del world.targets[0]
    await world.sampler._files_round()
    assert (world.sampler.open_files, list(world.sampler._samples), list(world.sampler._told)) == (1, ["two"], ["two"])
    await world.sampler._close()


async def test_the_loop_closes_its_files_when_it_ends(world: World) -> None:
    world.add("one")
    async with anyio.create_task_group() as group:
        group.start_soon(world.sampler.run)
        await world.cpu()
        assert world.sampler.open_files == 1
        group.cancel_scope.cancel()
    assert world.sampler.open_files == 0


async def test_questions_about_single_ones_leave_nothing_behind(world: World) -> None:
    target = world.add("one")
    await world.cpu(target, fresh=True)
    assert world.sampler.open_files == 0
    world.targets.clear()
    other = world.add("two")
    await world.cpu(other, fresh=True)
    assert list(world.sampler._samples) == ["two"]


async def test_one_whose_cgroup_is_gone_has_nothing_and_is_not_looked_for_by_each_list(world: World) -> None:
    gone = Target("gone", "/gone")
    for _ in range(3):
        assert await world.cpu(gone) == [None]
    assert world.reader.looks == ["/gone"]


async def test_a_rate_needs_a_beginning_or_two_looks(world: World) -> None:
    old = world.add("one")
    assert (await world.sampler.samples([old], fresh=True))["one"].nano_cores is None
    new = Target("new", "/one", began_ns=time.time_ns() - 2_000_000_000)
    rate = (await world.sampler.samples([new], fresh=True))["new"].nano_cores
    assert rate is not None
    assert 1000 < rate <= 2500


async def test_a_backends_counter_does_not_go_back(world: World) -> None:
    backend = Backend(CgroupStats(1, cpu_ns=70))
    target = backend.target("b")
    world.targets.append(target)
    assert await world.cpu(target, fresh=True) == [70]
    backend.told = CgroupStats(2, cpu_ns=60)
    assert await world.cpu(target, fresh=True) == [70]


async def test_a_backend_that_fails_or_does_not_know_costs_its_own_numbers(world: World, caplog: pytest.LogCaptureFixture) -> None:
    broken, silent, good = Backend(HostError("it broke")), Backend(None), Backend(CgroupStats(1, cpu_ns=7))
    found = await world.sampler.samples([broken.target("broken"), silent.target("silent"), good.target("good")])
    assert list(found) == ["good"]
    assert "no statistics of broken: it broke" in caplog.text


async def test_a_backend_that_hangs_is_not_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ANSWER_SECONDS", 0.05)
    hanging, good = Backend(CgroupStats(1, cpu_ns=1)), Backend(CgroupStats(1, cpu_ns=7))
    hanging.open = anyio.Event()
    found = await world.sampler.samples([hanging.target("hanging"), good.target("good"), world.add("files")])
    assert sorted(found) == ["files", "good"]
    hanging.open.set()
    assert "hanging" in await world.sampler.samples([hanging.target("hanging")])
    await world.sampler._close()


@pytest.mark.parametrize(("count", "asked"), [(16, 3), (17, 1)])
async def test_many_backends_are_asked_once_a_period_only(world: World, count: int, asked: int) -> None:
    backends = [Backend(CgroupStats(1, cpu_ns=7)) for _ in range(count)]
    world.targets += [each.target(str(number)) for number, each in enumerate(backends)]
    await world.sampler.samples(world.targets)
    for _ in range(2):
        await world.sampler._backends_round()
    assert {each.asked for each in backends} == {asked}


async def test_so_many_backends_are_asked_at_once_and_each_only_once(tmp_path: Path) -> None:
    world = World(tmp_path, at_once=2)
    backends = [Backend(CgroupStats(1, cpu_ns=7)) for _ in range(5)]
    for each in backends:
        each.open = anyio.Event()
    targets = [each.target(str(number)) for number, each in enumerate(backends)]
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(world.sampler.samples, targets)
        await anyio.wait_all_tasks_blocked()
        assert sum(each.asked for each in backends) == 2
        for each in backends:
            each.open.set()
    assert [each.asked for each in backends] == [1] * 5


async def until(true: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not true():
            await anyio.sleep(0.01)


@contextlib.contextmanager
def held(file: Path) -> Iterator[None]:
    """Who opens the file waits in the kernel meanwhile, as in front of a cgroup that is not let go of: a FIFO that nobody writes to."""
    content = file.read_text()
    file.unlink()
    os.mkfifo(file)
    try:
        yield
    finally:
        os.close(os.open(file, os.O_RDWR))  # those that wait go on
        file.unlink()
        file.write_text(content)


async def test_files_that_the_kernel_holds_cost_their_own_numbers(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_HELD_SECONDS", 0.3)
    targets = [world.add(name) for name in ("before", "stuck", "after")]
    assert await world.cpu() == [5000] * 3
    world.reader.drop("/stuck")
    with held(world.root / "stuck" / "cpu.stat"):
        for name in ("before", "after"):
            world.add(name, 6)
        assert await world.cpu(fresh=True) == [6000, 5000, 6000], "what was known of it is not a period old"
        assert "no statistics of stuck: the kernel has held a thread" in caplog.text
        for name in ("before", "after"):
            world.add(name, 7)
        assert await world.cpu(fresh=True) == [7000, 5000, 7000]
        assert world.reader.looks[3:] == ["/before", "/stuck"], "then another reader did it, and nobody waited for that one again"
        await world.sampler._files_round()
        await world.sampler.forget("stuck")
    await until(lambda: "statistics of stuck can be read again" in caplog.text)
    assert await world.cpu(targets[1], fresh=True) == [5000]
    await world.sampler._close()
    assert (world.sampler.open_files, world.reader.open_files) == (0, 0)


async def test_only_so_many_threads_are_left_to_the_kernel(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HELD_SECONDS", 0.1)
    names = [str(number) for number in range(6)]
    for name in names:
        world.add(name)
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(held(world.root / name / "cpu.stat"))
        assert await world.cpu() == []
        assert len(world.sampler._held) == module._MOST_HELD
        assert await world.cpu() == [], "no more are begun"
    await until(lambda: not world.sampler._held)
    assert await world.cpu() == [5000] * 6
    await world.sampler._close()
    assert (world.sampler.open_files, world.reader.open_files) == (0, 0)


async def test_a_question_that_is_called_off_leaves_a_held_reader_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HELD_SECONDS", 0.2)
    target = world.add("one")
    with held(world.root / "one" / "cpu.stat"):
        with anyio.move_on_after(0.05):
            await world.cpu(target)
        assert world.sampler._reader is not world.reader
        assert await world.cpu(world.add("two")) == [5000]
    await until(lambda: not world.sampler._held)
    await world.sampler._close()


async def test_details_of_what_nobody_wants_them_of_are_not_read(world: World) -> None:
    pod = replace(world.add("pod"), detailed=False)
    for _ in range(2):
        assert (await world.sampler.samples([pod], detailed=True))["pod"].details is None
    assert world.reader.looks == ["/pod"], "and it is not looked at again for them"
    await world.sampler._close()


async def test_a_node_of_five_thousand_cgroups(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first list waits for one look at each, in hops that are none of them long; the next ones look at nothing."""
    hops: list[int] = []

    class Counted(Look):
        def __init__(self, targets: Sequence[Target], *given: Any, **named: Any) -> None:
            hops.append(len(targets))
            super().__init__(targets, *given, **named)

    def read(cgroup: str, **_: bool) -> tuple[CgroupStats, None]:
        world.reader.looks.append(cgroup)
        return CgroupStats(time.time_ns(), cpu_ns=7), None

    monkeypatch.setattr(module, "Look", Counted)
    monkeypatch.setattr(world.reader, "read", read)
    world.targets += [Target(str(number), f"/{number}") for number in range(5000)]
    for _ in range(2):
        assert await world.cpu() == [7] * 5000
        assert len(world.reader.looks) == 5000
    assert max(hops) == module._AT_A_TIME


async def test_what_ends_amid_a_look_is_left_out(world: World) -> None:
    """Its files are open, then it goes: what is read of them is ENODEV, here an empty file."""
    one, two = world.add("one"), world.add("two")
    await world.cpu()
    (world.root / "one" / "cpu.stat").write_text("")
    assert await world.cpu(one, two, fresh=True) == [None, 5000]
    await world.sampler._close()


async def test_who_asks_again_is_told_something_new(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a period, once it was quiet; also by a backend, unless there are many."""
    backend = Backend(CgroupStats(1, cpu_ns=7))
    targets = [world.add("one"), backend.target("b")]
    world.targets[:] = targets
    assert await world.cpu() == [5000, 7]
    world.add("one", 6)
    backend.told = CgroupStats(2, cpu_ns=8)
    assert await world.cpu() == [5000, 7], "a kubelet asks for several lists in turn"
    monkeypatch.setattr(module, "_QUIET_SECONDS", 0.0)
    assert await world.cpu() == [6000, 8]
    await world.sampler._files_round()
    looks = len(world.reader.looks)
    assert await world.cpu(targets[0]) == [6000]
    assert len(world.reader.looks) == looks, "a round came between"
    world.targets += [Backend(CgroupStats(1, cpu_ns=7)).target(str(number)) for number in range(16)]
    await world.cpu()
    asked = backend.asked
    await world.cpu()
    assert (backend.asked, len(world.reader.looks)) == (asked, looks + 2)
    await world.sampler._close()
