"""A Create that is cut off half-way in the runtime, by the loss of the server, of the connection or of the shim: nothing is left of it."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from bridge.errors import BridgeError
from bridge.host import cgroup_kill, cgroups
from bridge.ports.runtime import ContainerSpec, SandboxSpec
from bridge.shimv2.container import ShimContainer
from bridge.shimv2.sandbox import ShimSandbox
from bridge.shimv2.task import ShimTask, Stdio
from tests.integration.shim_host import SHIM, ShimHost, shim_host

pytestmark = [pytest.mark.root, pytest.mark.skipif(not SHIM or not shutil.which("runc"), reason="needs containerd-shim-runc-v2, runc")]
SECONDS = 30.0
RUNTIME = """#!/bin/sh
# runc, but as long as there is a file "slow" its Create gets as far as runc's does before it writes its state, and no further.
# Descriptor 3 is the socket at which the shim listens; runc's own child has something else there.
case " $* " in
*" create "*)
  [ -e {place}/slow ] || exec runc "$@"
  while [ $# -gt 1 ]; do
    [ "$1" = --root ] && root=$2
    shift
  done
  mkdir -p "$root/$1"
  mkfifo "$root/$1/exec.fifo"
  sleep 1000 </dev/null >/dev/null 2>&1 3>&- &
  for cgroup in $(cat {place}/cgroups); do
    mkdir -p "$cgroup"
    echo $! > "$cgroup/cgroup.procs"
  done
  touch {place}/reached
  read never < {place}/never
  exit 1;;
esac
exec runc "$@"
"""


class SlowHost:
    """A host whose runtime stops in the midst of a Create."""

    def __init__(self, host: ShimHost, place: Path) -> None:
        self.host = host
        self._place = place
        self._made: list[Path] = []

    def slow_down(self, container: ShimContainer) -> None:
        """From now on each Create stops, that of ``container`` in its cgroup."""
        assert container.cgroup is not None
        self._made = [each for each in cgroups.layout().directories(container.cgroup) if each.parent.is_dir()]
        (self._place / "cgroups").write_text("\n".join(map(str, self._made)))
        (self._place / "slow").touch()

    def close(self) -> None:
        """End what a failed test leaves in the cgroup."""
        for directory in self._made:
            cgroup_kill.kill_all(directory, timeout=5)

    async def stopped(self) -> None:
        """Wait until a Create has come as far as it may; later ones go through."""
        with anyio.fail_after(SECONDS):
            while not (self._place / "reached").exists():
                await anyio.sleep(0.02)
        (self._place / "slow").unlink()
        assert any("exec.fifo" in path.name for path in self._place.rglob("runc/cri-bridge/*/exec.fifo"))
        assert any(cgroups.pids(each) for each in self._made), "a process is in its cgroup"


@pytest.fixture
async def slow(tmp_path: Path) -> AsyncIterator[SlowHost]:
    program = tmp_path / "slow-runc"
    program.write_text(RUNTIME.format(place=shlex.quote(str(tmp_path))))
    program.chmod(0o755)
    os.mkfifo(tmp_path / "never")
    async with shim_host(tmp_path, binary_name=str(program)) as host:
        slow = SlowHost(host, tmp_path)
        try:
            yield slow
        finally:
            slow.close()


async def cut_off(slow: SlowHost, sandbox: ShimSandbox, container: ShimContainer, *, kill: bool = False) -> None:
    """Ask for a Create as a start does, and be lost: nothing is undone. ``kill`` loses the shim too."""
    runtime, spec = sandbox._runtime, container._spec
    held = await sandbox.shim_for(spec)
    await runtime.mark(spec.id, spec.sandbox_id, spec.bundle, held.bundle)
    slow.slow_down(container)

    async def ask() -> None:
        with contextlib.suppress(BridgeError):
            await ShimTask(held, spec.id).create(spec.bundle, Stdio(), options=runtime.settings.options, timeout=SECONDS)

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await slow.stopped()
        if kill:
            os.kill(slow.host.pids()[0], signal.SIGKILL)
        held.hang_up()


async def prepared(slow: SlowHost, sandbox: ShimSandbox, pod: SandboxSpec) -> tuple[ContainerSpec, ShimContainer]:
    spec = slow.host.container(pod, ["/bin/sleep", "1002"])
    return spec, await sandbox.create_container(spec)


@pytest.mark.parametrize("kill", [False, True], ids=["the shim lives", "the shim is lost too"])
async def test_the_next_server_removes_what_a_create_left(slow: SlowHost, kill: bool) -> None:
    host, pod = slow.host, slow.host.pod()
    async with host.shims() as backend:
        sandbox = await backend.create_sandbox(pod)
        spec, container = await prepared(slow, sandbox, pod)
        await cut_off(slow, sandbox, container, kill=kill)
    async with host.shims() as backend:
        sandbox = await backend.load_sandbox(pod, sandbox.record)
        loaded = await sandbox.load_container(spec, {})
        if not kill:
            assert not [left for left in host.leftovers() if spec.id in left], "nothing is left in a pod that goes on"
            await loaded.start()
        await loaded.delete()
        assert not [left for left in host.leftovers() if spec.id in left]
        await sandbox.delete()
        assert host.leftovers() == []
        assert await backend._runtime.monitor.tasks() == []


async def test_a_start_whose_connection_breaks_leaves_nothing(slow: SlowHost) -> None:
    host, pod = slow.host, slow.host.pod()
    async with host.shims() as backend:
        sandbox = await backend.create_sandbox(pod)
        _, container = await prepared(slow, sandbox, pod)
        slow.slow_down(container)

        async def start() -> None:
            with pytest.raises(BridgeError):
                await container.start()

        async with anyio.create_task_group() as group:
            group.start_soon(start)
            await slow.stopped()
            assert container._shim is not None
            container._shim.hang_up()
        assert host.marks() == [pod.id]
        await container.start()
        await container.delete()
        await sandbox.delete()
        assert host.leftovers() == []


async def test_what_no_record_owns_is_removed_with_what_its_create_left(slow: SlowHost) -> None:
    host, pod = slow.host, slow.host.pod()
    async with host.shims() as backend:
        sandbox = await backend.create_sandbox(pod)
        spec, container = await prepared(slow, sandbox, pod)
        await cut_off(slow, sandbox, container)
    async with host.shims() as backend:
        assert set(await backend.remove_strangers(lambda _: False)) == {pod.id, spec.id}
        assert host.leftovers() == []
