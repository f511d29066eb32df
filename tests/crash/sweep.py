"""Interrupting operations at failpoints, and looking afterwards whether all is well: the engine of the crash sweep."""

from __future__ import annotations

import dataclasses
import itertools
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from anyio.to_thread import run_sync
from grpclib.const import Status

from bridge.aio import describe
from bridge.client import CriError, connect
from bridge.errors import BridgeError, MonitorGone
from bridge.testing.failpoints import ENVIRONMENT, Control
from bridge.testing.images import Entry, Layout, tar
from bridge.testing.leaks import Scope, Snapshot, difference, snapshot
from bridge.testing.registry import registry
from tests.crash.chaos import Chaos, Worker
from tests.crash.node_operations import NODE_OPERATIONS
from tests.crash.nursery import nursery
from tests.crash.operations import OPERATIONS, image_removed
from tests.crash.stages import Operation, Stage
from tests.integration.daemon_fixtures import warm
from tests.integration.daemon_node import DaemonNode, Kubelet, ServerProcess, daemon_node, environment
from tests.integration.registry_node import push

_SIGNALS = "bridge.daemon:_until_stopped"
_HELD_SECONDS = 15.0
_AFTERWARDS_SECONDS = 1.0
_LOST_SECONDS = 2.0
_PATIENCE = 45.0
_READ_SECONDS = 5.0


@dataclass(frozen=True)
class Case:
    """One run of the sweep."""

    handler: str
    operation: Operation
    fault: str
    point: str

    def __str__(self) -> str:
        return f"{self.handler} {self.operation.name} {self.fault} at {self.point}"


class Sweeper:
    """A server under failpoints. ``run`` raises what is wrong after a case; the server is usable again then, or ``renew`` makes it so."""

    def __init__(self, node: DaemonNode, control: Control, image: str) -> None:
        self._node = node
        self._control = control
        self._image = image
        self._numbers = itertools.count(1)
        scope = node.scope()
        # A handler that a reload adds keeps these, and one whose probe was slow writes it when the first snapshot was taken already.
        runtimes = node.root / "run" / "runtimes"
        late = [runtimes / "late", *(runtimes / f"probe-{name}.json" for name in ("late", *node.handlers))]
        self._scope: Scope = dataclasses.replace(scope, pids=[], shared=[*scope.shared, *late])
        self._before: Snapshot = snapshot(self._scope)

    async def points(self, handler: str, operation: Operation) -> Sequence[str]:
        """Where ``operation`` comes through when nothing happens."""
        stage = self._stage()
        async with self._kubelet(handler) as kubelet:
            await operation.prepare(kubelet, stage)
            self._control.record()
            await operation.act(kubelet, stage)
            await anyio.sleep(0.2)  # what follows behind the answer: the watch over the exit, the release of the runtime's state
            self._control.disarm()
        async with self._kubelet(handler) as kubelet:  # another server's, perhaps
            await operation.again(kubelet, stage)
            await operation.tidy(kubelet, stage)
            await self._clean(kubelet)
        return self._control.points()

    async def run(self, case: Case) -> bool:
        """Whether the server came to the point at all. Raises AssertionError that names the case when anything is wrong."""
        try:
            return await self._run(case)
        except Exception as exc:
            raise AssertionError(f"{case}: {describe(exc)}") from exc

    async def chaos(
        self,
        handlers: Sequence[str],
        seed: int,
        operations: int,
        *,
        workers: int = 8,
        every: float = 1.0,
        counts: Counter[str] | None = None,
    ) -> Counter[str]:
        """So many operations of several workers amid faults, one ``every`` so many seconds; what happened how often.

        Raises AssertionError where the model is wrong. ``counts`` can be watched meanwhile.
        """
        counts = Counter() if counts is None else counts
        kubelets = [each for each in OPERATIONS if each not in NODE_OPERATIONS]
        points = [point for each in kubelets for point in await self.points(handlers[0], each) if "~" not in point]
        chance, over = random.Random(seed), anyio.Event()
        everyone = [
            Worker(number, self._node, handlers[number % len(handlers)], random.Random(f"{seed} {number}"), counts, self._image)
            for number in range(workers)
        ]
        async with anyio.create_task_group() as group:
            group.start_soon(Chaos(self._node, self._control, chance, points, counts, 2 * every).run, over)
            async with anyio.create_task_group() as work:
                for worker in everyone:
                    work.start_soon(worker.work, operations // workers)
            over.set()
        self._control.disarm()
        await self._until_ready()
        async with self._kubelet("") as kubelet:
            await self._clean(kubelet)
            stage = self._stage()
            await image_removed(kubelet, stage)
        await self._audit()
        return counts

    async def _run(self, case: Case) -> bool:
        stage = self._stage(case.fault)
        async with self._kubelet(case.handler) as kubelet:
            await case.operation.prepare(kubelet, stage)
        self._control.arm(case.point, fail=case.fault == "error")
        try:
            came = await self._interrupted(case, stage)
        finally:
            self._control.disarm()
        if not came:  # nothing happened, and nothing is lost that the fault would have taken
            stage.fault = ""
        with anyio.fail_after(_PATIENCE):
            await self._until_ready()
            await self._until_well(case, stage)
            async with self._kubelet(case.handler) as kubelet:
                await case.operation.tidy(kubelet, stage)
                await self._clean(kubelet)
        await self._audit()
        return came

    async def _interrupted(self, case: Case, stage: Stage) -> bool:
        done, first = anyio.Event(), self._node.process

        async def act() -> None:
            try:
                async with self._kubelet(case.handler) as kubelet:
                    await case.operation.act(kubelet, stage)
            except (BridgeError, OSError):
                pass  # it was interrupted: what matters is what comes after
            finally:
                done.set()

        async with anyio.create_task_group() as group:
            group.start_soon(act)
            with anyio.move_on_after(_HELD_SECONDS):
                while not self._control.held and not done.is_set():
                    await anyio.sleep(0.002)
            with anyio.move_on_after(_AFTERWARDS_SECONDS):  # what the server does once the caller has left
                while not self._control.held:
                    await anyio.sleep(0.002)
            if self._control.held and case.fault != "error":
                await self._fault(case, first)
            self._control.disarm()
            with anyio.move_on_after(self._patience(case)):
                await done.wait()
            group.cancel_scope.cancel()
        assert self._node.process is not None
        if self._node.process.poll() is not None:
            ends = case.fault in ("hang", "kill-both", "kill-server") or case.operation.name == "restart"
            assert ends, f"the server ended with code {self._node.process.returncode}"
            await self._node.restart()
        return self._control.held

    def _patience(self, case: Case) -> float:
        """Seconds for an operation to answer after its fault. A killed server's answers at once, if it does not wait for the next one."""
        assert self._node.process is not None
        if case.fault in ("cancel", "hang"):
            return 0
        return _HELD_SECONDS if self._node.process.poll() is None else _LOST_SECONDS

    async def _fault(self, case: Case, first: ServerProcess | None) -> None:
        """``first`` is the server that the operation began with, which a restart kills itself."""
        if case.fault in ("kill-monitor", "kill-both"):
            with suppress(MonitorGone):  # it may be the lack of one that is interrupted
                await self._node.kill_monitor(and_server=case.fault == "kill-both")
        if case.fault in ("kill-server", "kill-both"):
            await run_sync(self._node.kill)
        if case.fault == "hang":
            if case.operation.reads:
                await self._reads_go_on(case.handler)
            process = self._node.process
            assert process is not None
            process.send_signal(signal.SIGTERM)
            code = await run_sync(process.wait, 30)
            killed = case.operation.name == "restart" and process is first and code == -signal.SIGKILL
            assert killed or code in (0, 1), f"a server with hanging work ended with code {code}"

    async def _reads_go_on(self, handler: str) -> None:
        """Nobody waits for the one that hangs."""
        with anyio.fail_after(_READ_SECONDS):
            async with self._kubelet(handler) as kubelet:
                await kubelet.cri.runtime.list_pod_sandbox()
                await kubelet.cri.runtime.list_containers()
                await kubelet.cri.runtime.status()
                await kubelet.cri.image.list_images()

    async def _until_ready(self) -> None:
        """What was killed has a successor, and Status says so."""
        async with self._kubelet("") as kubelet:
            while True:
                status = (await kubelet.cri.runtime.status()).status
                if status is not None and all(each.status for each in status.conditions):
                    return
                await anyio.sleep(0.02)

    async def _until_well(self, case: Case, stage: Stage) -> None:
        """As a kubelet: again, until it has what it wants."""
        while True:
            try:
                async with self._kubelet(case.handler) as kubelet:
                    await case.operation.again(kubelet, stage)
                return
            except CriError as exc:
                if exc.code is not Status.UNAVAILABLE and "MonitorLost" not in exc.message and "injected" not in exc.message:
                    raise
            await anyio.sleep(0.05)

    async def _clean(self, kubelet: Kubelet) -> None:
        states = (await kubelet.cri.runtime.list_containers()).containers
        assert all(int(each.state) < 3 for each in states), f"a state is unknown: {states}"
        await kubelet.clean()
        assert not (await kubelet.cri.runtime.list_containers()).containers
        assert not (await kubelet.cri.runtime.list_pod_sandbox()).items

    async def _audit(self) -> None:
        left: list[str] = []
        for _ in range(200):
            left = [line for line in difference(self._before, await run_sync(snapshot, self._scope)) if not self._kept(line)]
            if not left:
                return
            await anyio.sleep(0.05)
        raise AssertionError("left behind:\n" + "\n".join(left))

    def _kept(self, line: str) -> bool:
        """The server, and a monitor that succeeded a killed one."""
        return f" {self._node.monitor_socket} " in line or f"--config {self._node.config_file}" in line

    def _stage(self, fault: str = "") -> Stage:
        number = next(self._numbers)
        spare = self._node.logs / f"spare{number}"
        spare.mkdir()
        some = Kubelet(self._node, None, "")  # type: ignore[arg-type]  # it only builds a configuration
        return Stage(spare, some.pod_config(f"swept{number}"), image=self._image, fault=fault)

    @asynccontextmanager
    async def _kubelet(self, handler: str) -> AsyncIterator[Kubelet]:
        async with connect(self._node.socket, wait=30) as cri:
            yield Kubelet(self._node, cri, handler)

    async def renew(self) -> None:
        """After a failed case: a fresh start, and whatever is left counts as there before."""
        await run_sync(self._node.kill)
        await self._node.restart()
        async with self._kubelet("") as kubelet:
            await kubelet.clean()
        self._before = await run_sync(snapshot, self._scope)


HANDLERS: Mapping[str, str | tuple[str, Mapping[str, Any]]] = {
    "runc": "runc",
    "crun": "crun",
    "gvisor": ("gvisor", {"network": "host", "platform": "ptrace"}),  # what every runsc can do on every kernel
    "shim": ("shim", {}),
}
"""What is swept, as DaemonNode takes it; any other handler's name is that of an installed plugin's runtime."""


@contextmanager
def sweeper(
    directory: Path, handlers: Sequence[str] = ("runc", "crun"), logs: Path | None = None, options: Mapping[str, Any] | None = None
) -> Iterator[Sweeper]:
    """A server with failpoints, its registry, and nothing left of them afterwards but what server and monitor said, in ``logs``.

    ``options`` are those of handlers that are not in HANDLERS.
    """
    control = directory / "control"
    control.mkdir()
    with Layout(directory / "swept") as layout:
        layout.image("swept", [tar([Entry("file", os.urandom(300_000))])], config={"Cmd": ["sh"]})
    chosen = {name: HANDLERS.get(name, (name, options or {})) for name in handlers}
    with nursery(environment()) as start, registry(directory / "registry") as host, daemon_node(patience=0.5, handlers=chosen) as node:
        node.starting = start
        anyio.run(push, directory / "swept", "swept", host, "swept:1")
        node.stop()
        node.environment[ENVIRONMENT] = str(control)
        node.start()
        anyio.run(warm, node)
        try:
            yield Sweeper(node, Control(control), f"{host}/swept:1")
        finally:
            if logs is not None:
                for log in (node.root / "server.log", *(node.root / "run").glob("*.log")):
                    shutil.copy(log, logs)


def cases(handler: str, operation: Operation, points: Iterable[str], faults: Iterable[str]) -> Iterator[Case]:
    """Every fault at every point where it can happen. The wait for signals can't fail; nor can it hang and be asked to end."""
    for fault in faults:
        for point in points if fault in operation.faults else ():
            if (fault != "error" or "~" not in point) and (fault not in ("error", "hang") or _SIGNALS not in point):
                yield Case(handler, operation, fault, point)


def timed(began: float) -> str:
    """Seconds since ``began``."""
    return f"{time.monotonic() - began:.1f} s"
