"""The life of a pod, step by step, on both servers in turn: A B A B … in one run, so that the machine's moods hit both alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import anyio

from bridge._proto.runtime import v1 as cri

from . import spans
from .report import Table
from .rpc import Message
from .servers import Running
from .workload import make_container, make_pod

STEPS = ("runp", "create", "start", "exec -s", "stop", "rm", "stopp", "rmp")
WHOLE = "**whole cycle**"
LOGGED = "start → first log line"
CPU = "CPU time of all processes"
_READY_DEADLINE = 20.0
_GRACE = 10  # seconds of StopContainer; the workload ends at once on SIGTERM, so none of it is waited for


async def wait_for_line(log: Path) -> None:
    """Wait until the container wrote `ready`: its SIGTERM handler is set and its log works."""
    with anyio.fail_after(_READY_DEADLINE):
        while not log.exists() or b" stdout F ready\n" not in log.read_bytes():
            await anyio.sleep(0.002)


class Cycle:
    """One pod on one server, timed step by step; checks off the clock that each step did what it says."""

    def __init__(self, server: Running, number: int) -> None:
        self._server = server
        self._pod = make_pod(server, number)
        self.times: dict[str, float] = {}
        self.traced: Table | None = None

    async def _step(self, name: str, method: str, request: Message) -> bytes:
        self.times[name], answer = await self._server.rpc.timed(method, request)
        return answer

    async def run(self) -> None:
        """The whole cycle. Raises AssertionError when a server skips work that it reports as done."""
        config = self._pod.config
        sandbox = cri.RunPodSandboxResponse().parse(await self._step("runp", "RunPodSandbox", cri.RunPodSandboxRequest(config=config)))
        create = cri.CreateContainerRequest(
            pod_sandbox_id=sandbox.pod_sandbox_id, config=make_container(self._pod, "main"), sandbox_config=config
        )
        container = cri.CreateContainerResponse().parse(await self._step("create", "CreateContainer", create)).container_id
        begin = anyio.current_time()
        await self._step("start", "StartContainer", cri.StartContainerRequest(container_id=container))
        await wait_for_line(self._pod.log("main"))
        self.times[LOGGED] = (anyio.current_time() - begin) * 1000
        execute = cri.ExecSyncRequest(container_id=container, cmd=["echo", "ok"], timeout=10)
        result = cri.ExecSyncResponse().parse(await self._step("exec -s", "ExecSync", execute))
        assert (result.exit_code, result.stdout) == (0, b"ok\n"), f"{self._server.name}: ExecSync gave {result}"
        await self._step("stop", "StopContainer", cri.StopContainerRequest(container_id=container, timeout=_GRACE))
        await self._check_exit(container)
        await self._step("rm", "RemoveContainer", cri.RemoveContainerRequest(container_id=container))
        await self._step("stopp", "StopPodSandbox", cri.StopPodSandboxRequest(pod_sandbox_id=sandbox.pod_sandbox_id))
        if self.traced is not None:  # now: the trace goes with the pod
            await spans.record(self._server, sandbox.pod_sandbox_id, self.traced)
        await self._step("rmp", "RemovePodSandbox", cri.RemovePodSandboxRequest(pod_sandbox_id=sandbox.pod_sandbox_id))
        self.times[WHOLE] = sum(self.times[step] for step in STEPS)

    async def _check_exit(self, container: str) -> None:
        request = cri.ContainerStatusRequest(container_id=container)
        status = (await self._server.rpc.call("ContainerStatus", request, cri.ContainerStatusResponse)).status
        assert status is not None
        found = (status.state, status.exit_code)
        assert found == (cri.ContainerState.CONTAINER_EXITED, 0), f"{self._server.name}: after StopContainer the container is {found}"

    def forget(self) -> None:
        """Remove the pod's cgroup, as a kubelet does. Raises OSError when the server left something running in it."""
        self._server.workspace.remove_pod_cgroup(self._server.name, self._pod.uid)


async def measure(servers: Sequence[Running], *, rounds: int, warm_up: int = 3, settle: float = 0.3) -> list[Table]:
    """``rounds`` timed cycles on each server, alternating, after ``warm_up`` untimed ones.

    After each cycle ``settle`` seconds are left to work that a server does behind the caller's back; its CPU time is counted.
    """
    table = Table(f"Pod cycle, p50 of {rounds}", "ms", [server.name for server in servers])
    traced = spans.table(rounds)
    for number in range(-warm_up, rounds):
        for server in servers:
            before = server.workspace.cpu_ms(server.name)
            cycle = Cycle(server, number + warm_up)
            if number >= 0 and server.name in traced.servers:
                cycle.traced = traced
            await cycle.run()
            await anyio.sleep(settle)
            cycle.forget()
            if number < 0:
                continue
            for label in (*STEPS, WHOLE, LOGGED):
                table.add(label, server.name, cycle.times[label])
            table.add(CPU, server.name, server.workspace.cpu_ms(server.name) - before)
    table.notes.append(
        f"`{WHOLE.strip('*')}` is the sum of the eight calls. `{LOGGED}` (polled every 2 ms) and `{CPU}` "
        f"(server, helpers, runtime and workload, with {settle} s after the cycle for what goes on in the background) are not part of it."
    )
    traced.notes.insert(
        0, "From the server's own trace of each pod, which holds neither the wire nor ExecSync, StopContainer and RemovePodSandbox."
    )
    return [table, traced] if traced.rows else [table]
