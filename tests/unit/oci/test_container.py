"""Sandbox, container and exec against a monitor that only notes what it is asked; the kernel's part is in tests/integration."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from bridge.errors import IllegalTransition, InvalidRequest, MonitorGone, NotFound, RuntimeFailed
from bridge.host.cgroup_paths import CgroupDriver
from bridge.monitor.client import MonitorClient
from bridge.monitor.protocol import LaunchFailed, TaskInfo
from bridge.oci import sandbox
from bridge.oci.cli import OciCli, OciSettings
from bridge.oci.container import OciContainer, load
from bridge.oci.dialect import ExecCgroup
from bridge.oci.runtime import OciRuntime
from bridge.oci.strays import start_ticks
from bridge.ports.host import HostContext, Monitor, unadjusted
from bridge.ports.runtime import (
    SANDBOX_PID_NAMESPACE,
    ContainerIO,
    ContainerSpec,
    ExecSpec,
    ExitStatus,
    NamespacePaths,
    SandboxSpec,
)

NOBODY = 2**22 + 7
"""A pid that no Linux host has."""


class UnheldMonitor:
    """The part of a monitor that serves shims, which no OCI command line needs."""

    async def hold(self, task_id: str, directory: Path, io: ContainerIO) -> None:
        raise AssertionError(task_id)

    async def ended(self, task_id: str, status: ExitStatus, *, drain: float) -> None:
        raise AssertionError(task_id)

    async def stdin_closed(self, task_id: str) -> None:
        raise AssertionError(task_id)

    async def spool(self, task_id: str, fifo: Path, path: Path) -> None:
        raise AssertionError(task_id)

    async def close_stdin(self, task_id: str) -> None:
        raise AssertionError(task_id)


class FakeMonitor(UnheldMonitor):
    """Knows the tasks it was asked to launch. ``failure`` fails the next launch, ``log`` is written as the runtime's log first."""

    def __init__(self) -> None:
        self.argvs: list[list[str]] = []
        self.asked: list[str] = []
        self.exits: dict[str, ExitStatus] = {}
        self.known: dict[str, TaskInfo] = {}
        self.failure: LaunchFailed | None = None
        self.log = ""
        self.gone = 0
        self.console: Path | None = None

    def _start(self, task: str, argv: Sequence[str]) -> int:
        self.argvs.append(list(argv))
        if self.failure is not None:
            Path(argv[argv.index("--log") + 1]).write_text(self.log)
            raise self.failure
        self.known[task] = TaskInfo(task, "container", NOBODY)
        return NOBODY

    async def launch(
        self,
        task_id: str,
        argv: Sequence[str],
        *,
        cwd: Path,
        pid_file: Path,
        io: ContainerIO,
        env: Mapping[str, str] | None = None,
        console_socket: Path | None = None,
        timeout: float,
        on_failure: Sequence[str] = (),
        before: Sequence[Sequence[str]] = (),
        exit_argv: Sequence[str] = (),
    ) -> int:
        self.console = console_socket
        assert list(on_failure)[-3:] == ["delete", "--force", task_id]
        return self._start(task_id, argv)

    async def exec(
        self,
        exec_id: str,
        argv: Sequence[str],
        *,
        cwd: Path,
        pid_file: Path,
        stdin: int | None,
        stdout: int | None,
        stderr: int | None,
        env: Mapping[str, str] | None = None,
        timeout: float,
    ) -> int:
        assert (cwd / f"exec-{exec_id}.json").exists()
        return self._start(exec_id, argv)

    async def wait(self, task_id: str) -> ExitStatus:
        self.asked.append(f"wait {task_id}")
        self._lost_or_unknown(task_id)
        return self.exits.get(task_id, ExitStatus(0))

    def _lost_or_unknown(self, task_id: str) -> None:
        if self.gone:
            self.gone -= 1
            raise MonitorGone("lost")
        if task_id not in self.known:
            raise NotFound(task_id)

    async def kill(self, task_id: str, signal: int) -> None:
        self.asked.append(f"kill {task_id} {int(signal)}")
        if task_id not in self.known:
            raise NotFound(task_id)

    async def reopen_log(self, task_id: str) -> None:
        self.asked.append(f"reopen {task_id}")

    async def attach(
        self,
        task_id: str,
        *,
        stdin: int | None,
        stdout: int | None,
        stderr: int | None,
        attached: Callable[[], None] = lambda: None,
    ) -> None:
        self.asked.append(f"attach {task_id} {stdin} {stdout} {stderr}")
        attached()

    async def resize(self, task_id: str, width: int, height: int) -> None:
        self._lost_or_unknown(task_id)
        self.asked.append(f"resize {task_id} {width}x{height}")

    async def adopt(self, task_id: str, pid: int, start_ticks: int, **waiter: Any) -> None:
        self.asked.append(f"adopt {task_id} {pid}")
        self.known[task_id] = TaskInfo(task_id, "container", pid)

    async def tasks(self, only: str = "") -> Sequence[TaskInfo]:
        return [task for task in self.known.values() if only in ("", task.id)]

    async def forget(self, task_id: str) -> None:
        self.known.pop(task_id, None)


def real_client_is_a_monitor(client: MonitorClient) -> Monitor:
    """Checked by mypy: the protocol and the real client agree."""
    return client


class Host:
    """A runtime handler on a fake monitor and a binary that must not be run, unless a test makes one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.monitor = FakeMonitor()
        self.adjust = unadjusted
        self.systemd = False
        self.binary = root / "runtime"
        self.calls = root / "calls"

    def provide(self, script: str = "exit 0") -> None:
        self.binary.write_text(f'#!/bin/sh\necho "$@" >> {self.calls}\n{script}\n')
        self.binary.chmod(0o755)

    @property
    def runtime(self) -> OciRuntime:
        context = HostContext(
            lambda: self.monitor, self.root / "state", self.root, self.root, CgroupDriver.CGROUPFS, adjust_spec=self.adjust
        )
        given = OciSettings("fake", self.binary, self.root / "state", systemd_cgroup=self.systemd, run_args=("--no-pivot",))
        return OciRuntime(OciCli(given), context, ExecCgroup.CONTROLLER)

    def spec(self, *, pid: Mapping[str, str] | None = None, **io: Any) -> ContainerSpec:
        bundle = self.root / "bundle"
        bundle.mkdir(exist_ok=True)
        namespaces = [{"type": "mount"}, dict(pid or {"type": "pid"})]
        return ContainerSpec("c1", "s1", bundle, {"process": {}, "linux": {"namespaces": namespaces}}, ContainerIO(**io))

    def pod(self, **changes: Any) -> SandboxSpec:
        state_dir = self.root / "s1"
        state_dir.mkdir(exist_ok=True)
        values: dict[str, Any] = {
            "id": "s1",
            "name": "web",
            "namespace": "default",
            "uid": "u",
            "hostname": "web",
            "state_dir": state_dir,
            "namespaces": NamespacePaths(),
            "shared_pid": False,
            "cgroup_parent": "/pods/p",
        }
        return SandboxSpec(**values | changes)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


async def test_create_runs_nothing_and_start_runs_one_verb(host: Host) -> None:
    container = await OciContainer.create(host.runtime, host.spec())
    assert json.loads((host.root / "bundle/config.json").read_text()) == host.spec().oci
    assert (host.root / "bundle/config.json").stat().st_mode & 0o777 == 0o600
    assert host.monitor.argvs == []
    assert await container.start() == NOBODY
    (argv,) = host.monitor.argvs
    bundle = str(host.root / "bundle")
    assert argv == [
        *(str(host.binary), "--root", str(host.root / "state"), "--log", f"{bundle}/runtime.log", "--log-format", "json"),
        *("run", "--detach", "--bundle", bundle, "--pid-file", f"{bundle}/pid", "--no-pivot", "c1"),
    ]
    assert container.record == {"v": 1, "pid": NOBODY, "start_ticks": 0}


async def test_under_systemd_it_lives_in_its_scope_itself_whatever_the_pod_asks(host: Host) -> None:
    """crun would put it below the scope, on cgroup v2: its execs, their kill and its OOM count would miss it there."""
    host.systemd = True
    spec = host.spec()
    asked = {"run.oci.systemd.subgroup": "deeper", "mine": "kept"}
    await OciContainer.create(host.runtime, replace(spec, oci={**spec.oci, "annotations": asked}))
    written = json.loads((spec.bundle / "config.json").read_text())
    assert written["annotations"] == {"run.oci.systemd.subgroup": "", "mine": "kept"}
    await OciContainer.create(host.runtime, spec)
    assert json.loads((spec.bundle / "config.json").read_text())["annotations"] == {"run.oci.systemd.subgroup": ""}


async def test_a_terminal_gets_a_socket_with_a_short_path(host: Host) -> None:
    container = await OciContainer.create(host.runtime, host.spec(terminal=True))
    await container.start()
    assert host.monitor.console == host.root / "tty/c1"
    assert host.monitor.argvs[0][-3:-1] == ["--console-socket", str(host.root / "tty/c1")]


async def test_a_failed_start_carries_the_log_and_what_stderr_adds(host: Host) -> None:
    host.monitor.failure = LaunchFailed(1, ["more on stderr"])
    host.monitor.log = '{"level":"error","msg":"exec: \\"x\\": executable file not found in $PATH"}\n'
    container = await OciContainer.create(host.runtime, host.spec())
    with pytest.raises(RuntimeFailed, match=r"handler 'fake': run failed \(exit code 1\): .*not found in .PATH; more on stderr") as caught:
        await container.start()
    assert caught.value.start_code == 127
    assert container.pid is None


async def test_a_start_that_times_out(host: Host) -> None:
    host.monitor.failure = LaunchFailed(None)
    container = await OciContainer.create(host.runtime, host.spec())
    with pytest.raises(RuntimeFailed, match="timed out"):
        await container.start()


async def test_wait_outlives_the_monitor(host: Host) -> None:
    container = await OciContainer.create(host.runtime, host.spec())
    await container.start()
    host.monitor.exits["c1"], host.monitor.gone = ExitStatus(9), 2
    with anyio.fail_after(10):
        assert (await container.wait()).code == 9


async def test_an_exit_that_nobody_saw(host: Host) -> None:
    container = await OciContainer.create(host.runtime, host.spec())
    await container.start()
    host.monitor.known.clear()
    assert await container.wait() == ExitStatus(255, reason="MonitorLost")
    fresh = await OciContainer.create(host.runtime, host.spec())
    with pytest.raises(NotFound):
        await fresh.wait()


@pytest.mark.parametrize("gone", [0, 2])
async def test_a_monitor_that_has_just_begun_is_told_of_what_is_attached_to(host: Host, gone: int) -> None:
    me = os.getpid()
    running = OciContainer(host.runtime, host.spec(), pid=me, ticks=start_ticks(me) or 0)
    host.monitor.gone = gone
    with anyio.fail_after(10):
        await running.resize(80, 25)
    assert host.monitor.asked == [f"adopt c1 {me}", "resize c1 80x25"]
    host.monitor.asked.clear()
    host.monitor.known.clear()
    sent: list[bool] = []
    with anyio.fail_after(10):
        await running.attach(stdin=None, stdout=5, stderr=6, attached=lambda: sent.append(True))
    assert (host.monitor.asked, sent) == ([f"adopt c1 {me}", "attach c1 None 5 6"], [True])


async def test_what_has_ended_unknown_to_the_monitor_is_not_attached_to(host: Host) -> None:
    with pytest.raises(NotFound):
        await OciContainer(host.runtime, host.spec(), pid=NOBODY, ticks=5).attach(stdin=None, stdout=5, stderr=None, attached=lambda: None)
    assert host.monitor.asked == []


async def test_release_runs_nothing_without_runtime_state_and_once_with_it(host: Host) -> None:
    container = await OciContainer.create(host.runtime, host.spec())
    await container.start()
    await container.release()
    state = host.root / "state/c1"
    state.mkdir(parents=True)
    host.provide(f"rmdir {state}")
    async with anyio.create_task_group() as group:
        group.start_soon(container.release)
        group.start_soon(container.release)
    assert host.calls.read_text().splitlines() == [f"--root {host.root}/state delete c1"]


async def test_delete_after_a_seen_exit_only_forgets(host: Host) -> None:
    container = await OciContainer.create(host.runtime, host.spec())
    await container.start()
    await container.wait()
    await container.release()
    host.monitor.asked.clear()
    await container.delete()
    assert (host.monitor.asked, host.monitor.known) == ([], {})


async def test_a_release_without_a_seen_exit_leaves_the_kill_to_delete(host: Host) -> None:
    container = await OciContainer.create(host.runtime, host.spec())
    await container.start()
    await container.release()
    await container.delete()
    assert host.monitor.asked == ["kill c1 9", "wait c1"]


async def test_a_delete_that_fails_is_told_only_while_state_is_left(host: Host) -> None:
    container = await OciContainer.create(host.runtime, host.spec())
    await container.start()
    state = host.root / "state/c1"
    state.mkdir(parents=True)
    host.provide("echo stuck >&2; exit 1")
    with pytest.raises(RuntimeFailed, match=r"delete failed .*stuck"):
        await container.delete()
    host.provide(f"rmdir {state}; echo odd >&2; exit 1")
    await container.delete()
    assert host.monitor.known == {}
    await container.delete()


async def test_load(host: Host) -> None:
    spec = host.spec()
    with pytest.raises(NotFound):
        await load(host.runtime, spec, {})
    await OciContainer.create(host.runtime, spec)
    assert (await load(host.runtime, spec, {"v": 1, "pid": 0})).pid is None
    host.monitor.known["c1"] = TaskInfo("c1", "container", NOBODY)
    assert (await load(host.runtime, spec, {})).pid == NOBODY
    host.monitor.known.clear()
    lost = await load(host.runtime, spec, {"v": 1, "pid": NOBODY, "start_ticks": 5})
    assert (await lost.wait()).reason == "MonitorLost"


async def test_exec_needs_a_started_container_and_leaves_no_file(host: Host) -> None:
    container = await OciContainer.create(host.runtime, host.spec())
    with pytest.raises(IllegalTransition, match="was not started"):
        await container.exec(ExecSpec("x1", {}))
    await container.start()
    started = await container.exec(ExecSpec("x1", {"args": ["ls"]}, console=Path("/c")))
    stem = f"{host.root}/bundle/exec-x1"
    flags = ["exec", "--detach", "--process", f"{stem}.json", "--pid-file", f"{stem}.pid", "--console-socket", "/c", "c1"]
    assert host.monitor.argvs[-1][-9:] == flags
    assert (await started.wait()).code == 0
    await started.delete()
    assert "x1" not in host.monitor.known
    assert not list((host.root / "bundle").glob("exec-*"))


async def test_a_failed_exec_is_told_and_leaves_no_file(host: Host) -> None:
    container = await OciContainer.create(host.runtime, host.spec())
    await container.start()
    host.monitor.failure, host.monitor.log = LaunchFailed(255), "it broke\n"
    with pytest.raises(RuntimeFailed, match=r"exec failed .*it broke"):
        await container.exec(ExecSpec("x1", {}))
    assert not list((host.root / "bundle").glob("exec-*"))


async def test_a_pod_runs_nothing_unless_it_shares_its_pids(host: Host) -> None:
    made = await sandbox.create(host.runtime, host.pod())
    assert (made.pid, made.record, host.monitor.argvs) == (None, {"v": 1, "pause": None}, [])
    with anyio.move_on_after(0.02) as scope:
        await made.wait()
    assert scope.cancelled_caught
    await made.stop()
    await made.delete()
    with pytest.raises(InvalidRequest, match="oci"):
        await sandbox.create(host.runtime, host.pod(shared_pid=True))


async def test_members_get_the_pause_processes_namespace(host: Host) -> None:
    made = await sandbox.create(host.runtime, host.pod(shared_pid=True, oci={"process": {"args": ["/pause"]}}))
    assert made.pid == NOBODY
    spec = host.spec(pid={"type": "pid", "path": SANDBOX_PID_NAMESPACE})
    await made.create_container(spec)
    written = json.loads((spec.bundle / "config.json").read_text())
    assert written["linux"]["namespaces"] == [{"type": "mount"}, {"type": "pid", "path": f"/proc/{NOBODY}/ns/pid"}]
    assert spec.oci["linux"]["namespaces"][1]["path"] == SANDBOX_PID_NAMESPACE
    again = await sandbox.load_sandbox(host.runtime, host.pod(shared_pid=True, oci={}), made.record)
    assert again.pid == NOBODY


async def test_plugins_may_adjust_the_spec(host: Host) -> None:
    def adjust(spec: Mapping[str, Any], pod: Mapping[str, Any], container: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**spec, "hostname": f"{pod['name']}-{container['id']}-{pod['handler']}"}

    host.adjust = adjust
    made = await sandbox.create(host.runtime, host.pod())
    await made.create_container(host.spec())
    assert json.loads((host.root / "bundle/config.json").read_text())["hostname"] == "web-c1-fake"
