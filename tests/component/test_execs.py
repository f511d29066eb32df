"""ExecSync over a fake runtime: it ends in time whatever the process does with its stdio, and leaves nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest

from bridge.core.services import Services
from bridge.errors import BridgeError, HostError, IllegalTransition, InvalidRequest, RuntimeFailed, TimedOut
from bridge.host.pipes import Collector
from bridge.ports.runtime import ExecSpec, ExitStatus
from bridge.testing.fakes import FakeContainer
from tests.component.conftest import World, container, pod

pytestmark = pytest.mark.root


class Command:
    """A command of the fake runtime. Keeps its own copies of the descriptors, as a process does."""

    pid = 77

    def __init__(
        self,
        spec: ExecSpec,
        *,
        out: bytes = b"",
        err: bytes = b"",
        code: int | None = 0,
        holds: bool = False,
        fails: Sequence[BridgeError] = (),
    ) -> None:
        assert spec.stdout is not None
        assert spec.stderr is not None
        self.deleted = False
        self.deletions = 0
        self._fails = list(fails)
        self._code = code
        self._fds = [os.dup(spec.stdout), os.dup(spec.stderr)]
        os.write(self._fds[0], out)
        os.write(self._fds[1], err)
        if not holds:
            self.close()

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())

    async def wait(self) -> ExitStatus:
        if self._code is None:
            await anyio.sleep_forever()
        return ExitStatus(self._code or 0)

    async def kill(self, signal: int) -> None:
        self._code = 128 + signal

    async def delete(self) -> None:
        self.deletions += 1
        if self._fails:
            raise self._fails.pop(0)
        self.deleted = True
        self.close()


async def running(world: World, core: Services) -> FakeContainer:
    sandbox = await core.sandboxes.run(pod(), "")
    made = await core.containers.create(sandbox.id, container())
    await core.containers.start(made.id)
    return world.backend.containers[made.id]


def answer(fake: FakeContainer, monkeypatch: pytest.MonkeyPatch, **how: object) -> list[Command]:
    made: list[Command] = []

    async def execute(spec: ExecSpec) -> Command:
        made.append(Command(spec, **how))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(fake, "exec", execute)
    return made


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_output_and_exit_code(world: World, core: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = await running(world, core)
    made = answer(fake, monkeypatch, out=b"out\n", err=b"err\n", code=3)
    before = descriptors()
    result = await core.execs.run(fake.id[:12], ["cmd"], 10)
    assert (result.stdout, result.stderr, result.exit_code) == (b"out\n", b"err\n", 3)
    assert made[0].deleted
    assert descriptors() == before


async def test_a_timeout_kills_it_and_is_told_as_one(world: World, core: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = await running(world, core)
    made = answer(fake, monkeypatch, code=None, holds=True)
    before = descriptors()
    began = time.monotonic()
    with pytest.raises(TimedOut, match="timed out"):
        await core.execs.run(fake.id, ["sleep", "1000"], 0.2)
    assert time.monotonic() - began < 30
    assert made[0].deleted
    assert descriptors() == before


async def test_a_child_that_keeps_stdout_does_not_hold_the_answer(world: World, core: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = await running(world, core)
    made = answer(fake, monkeypatch, out=b"done\n", code=0, holds=True)
    with anyio.fail_after(5):
        result = await core.execs.run(fake.id, ["daemon"], 0)
    assert (result.stdout, result.exit_code) == (b"done\n", 0)
    assert made[0].deleted


@pytest.mark.parametrize(
    ("fails", "deletions", "deleted"),
    [([HostError("no descriptor")], 2, True), ([HostError("no descriptor")] * 4, 3, False), ([TimedOut("stuck")], 1, False)],
)
async def test_what_fails_to_end_it_is_tried_again(
    world: World, core: Services, monkeypatch: pytest.MonkeyPatch, fails: list[BridgeError], deletions: int, deleted: bool
) -> None:
    """But for one that is stuck in the kernel, which had its time."""
    monkeypatch.setattr("bridge.core.streams._DELETE_PAUSES", (0.0, 0.0))
    fake = await running(world, core)
    made = answer(fake, monkeypatch, out=b"done\n", fails=fails)
    assert (await core.execs.run(fake.id, ["cmd"], 10)).stdout == b"done\n"
    assert (made[0].deletions, made[0].deleted) == (deletions, deleted)


async def test_output_past_the_limit_is_dropped(world: World, core: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = await running(world, core)
    answer(fake, monkeypatch, out=b"x" * 1000)
    monkeypatch.setattr("bridge.core.execs.Collector", lambda fd, _limit: Collector(fd, 10))
    result = await core.execs.run(fake.id, ["cmd"], 10)
    assert result.stdout == b"x" * 10


async def test_a_caller_that_leaves_takes_the_command_along(world: World, core: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = await running(world, core)
    made = answer(fake, monkeypatch, code=None, holds=True)
    before = descriptors()
    with anyio.move_on_after(0.1):
        await core.execs.run(fake.id, ["sleep", "1000"], 0)
    assert made[0].deleted
    assert descriptors() == before


async def test_what_is_refused(world: World, core: Services) -> None:
    fake = await running(world, core)
    with pytest.raises(InvalidRequest, match="cmd"):
        await core.execs.run(fake.id, [], 0)
    with pytest.raises(InvalidRequest, match="timeout"):
        await core.execs.run(fake.id, ["x"], -1)
    world.backend.faults.fail_on.add("exec")
    before = descriptors()
    with pytest.raises(RuntimeFailed):
        await core.execs.run(fake.id, ["x"], 0)
    assert descriptors() == before
    await core.containers.stop(fake.id, 0)
    with pytest.raises(IllegalTransition, match="not running"):
        await core.execs.run(fake.id, ["x"], 0)
