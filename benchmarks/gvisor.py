"""What cri-bridge adds to gVisor: the start of a pod and its memory, beside runsc run by hand. Both use the host's network stack.

By hand there is no pod network, no image store, no log and no watch over the exit: a sandbox and a container in it, as a pod has,
in a network namespace that was made before.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from bridge._proto.runtime import v1 as cri
from bridge.host import namespaces
from bridge.host.null_device import open_null

from . import spans
from .cycle import wait_for_line
from .memory import pss_mib
from .report import Table
from .servers import Running
from .workload import STOPPABLE, make_container, make_pod, remove_pod
from .workspace import Workspace

BARE, OURS, HANDLER = "runsc", "cri-bridge", "gvisor"
_READY = "sandbox, container → first line"
_ALONE = "one container alone (`runsc run`) → first line"
_SETTLE = 5.0


def handler_toml(runsc: Path, flags: list[str]) -> str:
    """The handler that is measured; ``flags`` go before each verb, by hand too."""
    options = {"path": str(runsc), "network": "host", "extra_args": flags}
    lines = [
        f"[runtime.handlers.{HANDLER}]",
        'plugin = "gvisor"',
        *(f"options.{key} = {json.dumps(value)}" for key, value in options.items()),
    ]
    return "\n".join(lines) + "\n"


@dataclass
class Bare:
    """runsc by hand, its bundles below ``workspace``."""

    runsc: Path
    flags: list[str]
    workspace: Workspace
    null: int
    """As the monitor gives it: runsc makes its standard streams nobody's."""
    made: int = 0

    def argv(self, verb: str, *args: str) -> list[str]:
        """One invocation."""
        root = self.workspace.run_directory(BARE, "root")
        return [str(self.runsc), "--root", str(root), "--network=host", *self.flags, verb, *args]

    def run(self, verb: str, *args: str, **options: Any) -> None:
        """Run one to its end. Raises CalledProcessError."""
        subprocess.run(self.argv(verb, *args), check=True, stdin=self.null, timeout=60, **options)

    def bundle(self, name: str, net: Path, argv: tuple[str, ...], notes: Mapping[str, str]) -> Path:
        """A bundle with the workload's program."""
        bundle = self.workspace.run_directory(BARE, name)
        programs = bundle / "rootfs" / "bin"
        programs.mkdir(parents=True)
        for directory in ("proc", "dev", "sys", "tmp"):
            (bundle / "rootfs" / directory).mkdir()
        shutil.copy("/bin/busybox", programs / "busybox")
        for program in ("sh", "sleep"):
            (programs / program).symlink_to("busybox")
        mounts = [{"destination": f"/{kind}", "type": kind, "source": kind} for kind in ("proc",)]
        linux = {
            "cgroupsPath": f"/{self.workspace.name}/{BARE}/pods/{name}",
            "namespaces": [{"type": "network", "path": str(net)}, *({"type": kind} for kind in ("pid", "ipc", "uts", "mount"))],
        }
        process = {"args": list(argv), "env": ["PATH=/bin"], "cwd": "/", "user": {"uid": 0, "gid": 0}}
        spec = {
            "ociVersion": "1.0.2",
            "root": {"path": "rootfs"},
            "process": process,
            "mounts": mounts,
            "linux": linux,
            "annotations": notes,
        }
        (bundle / "config.json").write_text(json.dumps(spec))
        return bundle

    async def alone(self) -> float:
        """Milliseconds until the first line of a container without a pod."""
        self.made += 1
        name = f"alone{self.made}"
        net = await self._network(name)
        bundle = self.bundle(name, net, STOPPABLE, {})

        def start(out: int) -> None:
            self.run("run", "--detach", "--bundle", str(bundle), name, stdout=out, stderr=out)

        return _first_line(start)

    async def pod(self) -> float:
        """The same for a container in a sandbox."""
        self.made += 1
        sandbox, member = f"pod{self.made}", f"member{self.made}"
        net = await self._network(sandbox)
        note, pod = "io.kubernetes.cri.container-type", {"io.kubernetes.cri.sandbox-id": sandbox}
        outer = self.bundle(sandbox, net, ("sleep", "86400"), {note: "sandbox", **pod})
        inner = self.bundle(member, net, STOPPABLE, {note: "container", **pod})

        def start(out: int) -> None:
            for bundle, name in ((outer, sandbox), (inner, member)):
                self.run("run", "--detach", "--bundle", str(bundle), name, stdout=out, stderr=out)

        return _first_line(start)

    async def _network(self, name: str) -> Path:
        return (
            await namespaces.create(self.workspace.run_directory(BARE, "ns", name), net=True, ipc=False, uts=False, hostname="", sysctls={})
        )["net"]

    def clear(self) -> None:
        """End and remove everything."""
        root = self.workspace.run_directory(BARE, "root")
        states = sorted(root.glob("*.state"), key=lambda state: state.name.partition("_sandbox:")[0] == state.stem.rpartition(":")[2])
        for state in states:
            self.run("delete", "--force", state.name.partition("_sandbox:")[0])


def _first_line(start: Callable[[int], None]) -> float:
    """Milliseconds from the call of ``start``, whose workload writes to the given descriptor, until its first line."""
    ours, theirs = os.pipe()
    try:
        begin = time.monotonic()
        start(theirs)
        if os.read(ours, 64) != b"ready\n":
            raise RuntimeError("the workload did not say that it is ready")
        return (time.monotonic() - begin) * 1000
    finally:
        os.close(ours)
        os.close(theirs)


@contextmanager
def bare(runsc: Path, flags: list[str], workspace: Workspace) -> Any:
    """runsc by hand; everything is removed in the end."""
    null = open_null()
    made = Bare(runsc, flags, workspace, null)
    try:
        yield made
    finally:
        made.clear()
        os.close(null)


async def _start(server: Running, number: int, traced: Table | None = None) -> tuple[str, dict[str, float]]:
    """A pod on gVisor, timed step by step; its sandbox's id."""
    pod, times = make_pod(server, number), {}
    begin = anyio.current_time()
    request = cri.RunPodSandboxRequest(config=pod.config, runtime_handler=HANDLER)
    times["runp"], answer = await server.rpc.timed("RunPodSandbox", request)
    sandbox = cri.RunPodSandboxResponse().parse(answer).pod_sandbox_id
    create = cri.CreateContainerRequest(pod_sandbox_id=sandbox, config=make_container(pod, "main"), sandbox_config=pod.config)
    times["create"], answer = await server.rpc.timed("CreateContainer", create)
    container = cri.CreateContainerResponse().parse(answer).container_id
    times["start"], _ = await server.rpc.timed("StartContainer", cri.StartContainerRequest(container_id=container))
    await wait_for_line(pod.log("main"))
    times[_READY] = (anyio.current_time() - begin) * 1000
    if traced is not None:
        await spans.record(server, sandbox, traced)
    return sandbox, times


async def measure(server: Running, hand: Bare, *, rounds: int, pods: int) -> list[Table]:
    """``rounds`` starts of each, alternating, then the memory of ``pods`` of each."""
    table = Table(f"Start of a pod on gVisor, p50 of {rounds}", "ms", [BARE, OURS])
    traced = spans.table(rounds)
    for number in range(-2, rounds):
        alone, pod = await hand.alone(), await hand.pod()
        hand.clear()
        sandbox, times = await _start(server, number + 2, traced if number >= 0 else None)
        await remove_pod(server, sandbox)
        if number >= 0:
            table.add(_ALONE, BARE, alone)
            table.add(_READY, BARE, pod)
            for label, value in times.items():
                table.add(label, OURS, value)
    table.notes.append("By hand without pod network, image store, log and watch over the exit. The pod's CNI ADD is in `runp`.")
    return [table, traced, await _memory(server, hand, pods)]


def _pss(pids: list[int]) -> float:
    return sum(pss_mib(pid) for pid in pids)


async def _memory(server: Running, hand: Bare, pods: int) -> Table:
    table = Table(f"Memory of a pod on gVisor, of {pods} idle ones (PSS)", "MiB", [BARE, OURS], shares=())
    workspace = server.workspace
    for _ in range(pods):
        await hand.pod()
    await anyio.sleep(_SETTLE)
    inside = workspace.in_pods(BARE)
    table.add("the sandboxes' processes", BARE, _pss(inside) / pods)
    table.add("all", BARE, _pss(inside) / pods)
    table.add("processes", BARE, len(inside) / pods)
    hand.clear()
    before = workspace.processes(OURS)
    base = _pss(before)
    sandboxes = [(await _start(server, 1000 + number))[0] for number in range(pods)]
    await anyio.sleep(_SETTLE)
    inside, outside = workspace.in_pods(OURS), workspace.processes(OURS)
    table.add("the sandboxes' processes", OURS, _pss(inside) / pods)
    table.add("server, monitor and what waits for exits", OURS, (_pss(outside) - base) / pods)
    table.add("all", OURS, (_pss(inside) + _pss(outside) - base) / pods)
    table.add("processes", OURS, (len(inside) + len(outside) - len(before)) / pods)
    for sandbox in sandboxes:
        await remove_pod(server, sandbox)
    table.notes.append("A page that several processes map, such as runsc's program, counts by its share in each.")
    return table
