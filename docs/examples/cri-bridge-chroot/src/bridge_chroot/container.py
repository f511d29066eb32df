"""A container and the commands in it. The monitor runs the launcher, adopts what that leaves, and holds stdio, log and exit."""

import contextlib
import json
import math
import signal as signals
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from anyio import to_thread
from bridge.errors import AlreadyExists, IllegalTransition, NotFound, RuntimeFailed
from bridge.host import cgroup_limits, cgroups
from bridge.host.cgroup_kill import kill_all
from bridge.host.cgroup_limits import PodLimits
from bridge.host.cgroup_stats import CgroupStats
from bridge.host.oci_documents import merged, write_json
from bridge.monitor.lasting import MONITOR_RETURN_SECONDS, lasting, present
from bridge.monitor.protocol import LaunchFailed
from bridge.ports.host import HostContext, Monitor
from bridge.ports.runtime import ContainerSpec, ExecSpec, ExitStatus, Record

T = TypeVar("T")
PROGRAM = Path(__file__).with_name("launcher.py")


@dataclass(frozen=True)
class Launcher:
    """What all containers of a handler share. ``state`` has a file for each that was started: for whom to look at after a crash."""

    handler: str
    interpreter: tuple[str, ...]
    state: Path
    context: HostContext

    def argv(self, *words: object) -> list[str]:
        """The launcher's command line."""
        return [*self.interpreter, str(PROGRAM), *map(str, words)]

    async def failed(self, verb: str, exc: LaunchFailed, pid_file: Path) -> RuntimeFailed:
        """What the launcher said; its exit code is what is told of a container whose command is missing (127) or no program (126)."""
        said = await to_thread.run_sync(_take, pid_file.with_name(f"{pid_file.name}.failed"))
        code = exc.exit_code if exc.exit_code in (126, 127) else 128
        return RuntimeFailed(handler=self.handler, verb=verb, exit_code=exc.exit_code, log_tail=[*exc.stderr_tail, said], start_code=code)


class ChrootExec:
    """A command in a container (bridge.ports.runtime.ExecProcess), in a sub-cgroup, so that ``delete`` finds all that it forked."""

    def __init__(self, launcher: Launcher, ident: str, pid: int, directories: Sequence[Path]) -> None:
        self.pid = pid
        self._launcher = launcher
        self._ident = ident
        self._directories = directories

    async def wait(self) -> ExitStatus:
        """Its exit."""
        return await self._launcher.context.monitor().wait(self._ident)

    async def kill(self, signal: int) -> None:
        """Signal the command itself; ended is success."""
        with contextlib.suppress(NotFound):
            await self._launcher.context.monitor().kill(self._ident, signal)

    async def delete(self) -> None:
        """Kill what is left of it and remove its traces."""
        await to_thread.run_sync(_remove, self._directories, self._launcher.context.timeouts.kill)
        with contextlib.suppress(NotFound):
            await self.wait()
            await self._launcher.context.monitor().forget(self._ident)


class ChrootContainer:
    """A container (bridge.ports.runtime.ContainerHandle)."""

    def __init__(self, launcher: Launcher, spec: ContainerSpec, cgroup: str | None, pid: int = 0, ticks: int = 0) -> None:
        self._launcher = launcher
        self._spec = spec
        self._cgroup = cgroup
        self._pid = pid
        self._ticks = ticks

    @classmethod
    async def create(cls, launcher: Launcher, spec: ContainerSpec, oci: Mapping[str, Any]) -> "ChrootContainer":
        """Nothing is run yet: the server promised that a container that was only created costs no process."""
        await to_thread.run_sync(write_json, spec.bundle / "config.json", oci)
        return cls(launcher, spec, oci["linux"]["cgroupsPath"])

    @classmethod
    async def load(cls, launcher: Launcher, spec: ContainerSpec, record: Record) -> "ChrootContainer":
        """From the record and, for one whose start the server did not live to hear of, from the monitor."""
        tasks = await lasting(launcher.context.monitor, lambda monitor: monitor.tasks())
        pid = next((task.pid for task in tasks if task.id == spec.id), record.get("pid", 0))
        if not spec.oci:
            raise NotFound(f"container {spec.id} has no bundle")
        return cls(launcher, spec, spec.oci["linux"]["cgroupsPath"], pid, record.get("ticks", 0) or _ticks(pid))

    @property
    def id(self) -> str:
        """The server's id of it, also at the monitor."""
        return self._spec.id

    @property
    def record(self) -> Record:
        """What ``load_container`` gets after a restart. A pid alone could be another process's by then: its start time tells."""
        return {"v": 1, "pid": self._pid, "ticks": self._ticks}

    @property
    def pid(self) -> int | None:
        """The first process's; None before the start."""
        return self._pid or None

    @property
    def cgroup(self) -> str | None:
        """Where the server reads statistics."""
        return self._cgroup

    async def start(self) -> int:
        """Make the cgroup, then have the monitor run the launcher. What fails leaves nothing behind."""
        context, spec = self._launcher.context, self._spec
        assert self._cgroup is not None
        resources = (await to_thread.run_sync(_read, spec.bundle)).get("linux", {}).get("resources", {})
        console = context.run_root / "tty" / self.id[:32] if spec.io.terminal else None
        try:
            directories = await to_thread.run_sync(cgroups.create, self._cgroup)
            await to_thread.run_sync(_limit, self._cgroup, resources)
            await to_thread.run_sync((self._launcher.state / self.id).touch)
            self._pid = await (await present(context.monitor)).launch(
                self.id,
                self._launcher.argv("run", spec.bundle, spec.bundle / "pid", console or "-", *directories),
                cwd=spec.bundle,
                pid_file=spec.bundle / "pid",
                io=spec.io,
                console_socket=console,
                timeout=context.timeouts.start,
            )
        except LaunchFailed as exc:
            await self._free()
            raise await self._launcher.failed("run", exc, spec.bundle / "pid") from exc
        except BaseException:
            await self._free()
            raise
        self._ticks = _ticks(self._pid)
        return self._pid

    async def kill(self, signal: int, *, all_processes: bool = False) -> None:
        """Signal the first process, or everybody; ended is success."""
        with contextlib.suppress(NotFound):
            await self._held(lambda monitor: monitor.kill(self.id, signal))
        if all_processes and signal == signals.SIGKILL and self._cgroup is not None:
            await to_thread.run_sync(_kill, self._cgroup, self._launcher.context.timeouts.kill)

    async def wait(self) -> ExitStatus:
        """Its exit, whoever is the monitor by then."""
        try:
            return await self._held(lambda monitor: monitor.wait(self.id), patience=math.inf)
        except NotFound:
            if not self._pid:
                raise
            return ExitStatus(255, reason="MonitorLost")  # it ended while no monitor was there to see how

    async def _held(self, ask: Callable[[Monitor], Awaitable[T]], *, patience: float = MONITOR_RETURN_SECONDS) -> T:
        """Ask the monitor. A new one, which replaced one that died, is told of our process first."""

        async def adopting(monitor: Monitor) -> T:
            try:
                return await ask(monitor)
            except NotFound:
                if not self._pid or _ticks(self._pid) != self._ticks:
                    raise
                with contextlib.suppress(AlreadyExists):
                    await monitor.adopt(self.id, self._pid, self._ticks)
                return await ask(monitor)

        return await lasting(self._launcher.context.monitor, adopting, patience=patience)

    async def exec(self, spec: ExecSpec) -> ChrootExec:
        """Run a command in it. The three descriptors, or the terminal's socket, are the caller's."""
        if not self._pid or self._cgroup is None:
            raise IllegalTransition(f"container {self.id} was not started")
        context, stem = self._launcher.context, self._spec.bundle / f"exec-{spec.id}"
        described, pid_file = stem.with_suffix(".json"), stem.with_suffix(".pid")
        directories: Sequence[Path] = ()
        try:
            directories = await to_thread.run_sync(cgroups.create_child, self._cgroup, f"exec-{spec.id}")
            await to_thread.run_sync(write_json, described, spec.process)
            words = ("exec", self._pid, described, pid_file, spec.console or "-", *directories)
            pid = await (await present(context.monitor)).exec(
                spec.id,
                self._launcher.argv(*words),
                cwd=self._spec.bundle,
                pid_file=pid_file,
                stdin=spec.stdin,
                stdout=spec.stdout,
                stderr=spec.stderr,
                timeout=context.timeouts.exec,
            )
        except LaunchFailed as exc:
            await to_thread.run_sync(_remove, directories, context.timeouts.kill)
            raise await self._launcher.failed("exec", exc, pid_file) from exc
        except BaseException:
            await to_thread.run_sync(_remove, directories, context.timeouts.kill)
            raise
        finally:
            await to_thread.run_sync(_unlink, described, pid_file)
        return ChrootExec(self._launcher, spec.id, pid, directories)

    async def attach(self, *, stdin: int | None, stdout: int | None, stderr: int | None, attached: Callable[[], None]) -> None:
        """Copy its output and its input from now on; the monitor has them."""
        await (await present(self._launcher.context.monitor)).attach(self.id, stdin=stdin, stdout=stdout, stderr=stderr, attached=attached)

    async def resize(self, width: int, height: int) -> None:
        """Set its terminal's size."""
        await self._launcher.context.monitor().resize(self.id, width, height)

    async def update(self, resources: Mapping[str, Any]) -> None:
        """Set the limits that ``resources`` names and leave the others: in the cgroup and, for a start to come, in the bundle."""
        config = await to_thread.run_sync(_read, self._spec.bundle)
        config["linux"]["resources"] = merged(config["linux"].get("resources", {}), resources)
        if self._pid and self._cgroup is not None:
            await to_thread.run_sync(_limit, self._cgroup, config["linux"]["resources"])
        await to_thread.run_sync(write_json, self._spec.bundle / "config.json", config)

    async def stats(self) -> CgroupStats | None:
        """Not asked, as ``cgroup`` tells where to read."""
        return None

    async def reopen_log(self) -> None:
        """After the log file was renamed."""
        await self._launcher.context.monitor().reopen_log(self.id)

    async def release(self) -> None:
        """After the exit: children that outlived the first process end, and the cgroup goes. A running container stays as it is."""
        if not self._pid or _ticks(self._pid) != self._ticks:
            await self._free()

    async def delete(self) -> None:
        """Kill what is left and remove every trace; comes twice, or for a container that never started, just as well."""
        with contextlib.suppress(NotFound):
            await self._held(lambda monitor: monitor.kill(self.id, signals.SIGKILL))
            await self._held(lambda monitor: monitor.wait(self.id))
        await self._free()
        with contextlib.suppress(NotFound):
            await lasting(self._launcher.context.monitor, lambda monitor: monitor.forget(self.id))

    async def _free(self) -> None:
        if self._cgroup is not None:
            await to_thread.run_sync(_remove, cgroups.layout().directories(self._cgroup), self._launcher.context.timeouts.kill)
        await to_thread.run_sync(_unlink, self._launcher.state / self.id)


def _remove(directories: Sequence[Path], timeout: float) -> None:
    for directory in directories:
        kill_all(directory, timeout=timeout)
        cgroups.remove_directory(directory)


def _kill(cgroup: str, timeout: float) -> None:
    for directory in cgroups.layout().directories(cgroup):
        kill_all(directory, timeout=timeout)


def _limit(cgroup: str, resources: Mapping[str, Any]) -> None:
    cpu, memory = resources.get("cpu", {}), resources.get("memory", {})
    shares, quota, period = cpu.get("shares", 0), cpu.get("quota") or -1, cpu.get("period") or 100_000
    cgroup_limits.apply(cgroup, PodLimits(shares=shares, quota=quota, period=period, memory=memory.get("limit") or -1))
    most = resources.get("pids", {}).get("limit") or -1
    for directory in cgroups.layout().directories(cgroup):
        if (directory / "pids.max").exists():
            (directory / "pids.max").write_text("max" if most < 0 else str(most))


def _read(bundle: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundle / "config.json").read_text())
    return found


def _take(path: Path) -> str:
    """What is in a file, which goes."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
    finally:
        path.unlink(missing_ok=True)


def _unlink(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _ticks(pid: int) -> int:
    """When a process started; 0 for one that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])
