"""One exec in a container of a sandbox: ``exec --detach`` through the monitor, which leaves a runsc that ends with the command's code.

That runsc is not the command: what was started in the guest goes on when it is killed. So the end of an exec is ``kill --pid`` for
the guest's process and everyone below it.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio import to_thread

from bridge import log
from bridge.errors import BridgeError, IllegalTransition, MonitorGone, NotFound, RuntimeFailed, TimedOut
from bridge.host.oci_documents import write_json
from bridge.monitor.protocol import LaunchFailed
from bridge.ports.runtime import ExecSpec, ExitStatus
from bridge_gvisor.host import GvisorHost
from bridge_gvisor.runsc import descendants
from bridge_gvisor.spec import process

_logger = log.get("gvisor.exec")
_KILL = 9
_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class _Files:
    process: Path
    pid: Path
    guest_pid: Path
    log: Path

    def remove(self) -> None:
        for path in (self.process, self.pid, self.guest_pid, self.log):
            path.unlink(missing_ok=True)


class GvisorExec:
    """A running exec (bridge.ports.runtime.ExecProcess). Made by ``start`` alone."""

    def __init__(self, host: GvisorHost, container_id: str, spec: ExecSpec, bundle: Path) -> None:
        self._host, self._container, self._spec, self._bundle = host, container_id, spec, bundle
        stem = bundle / f"exec-{spec.id}"
        self._files = _Files(*(stem.with_suffix(suffix) for suffix in (".json", ".pid", ".guest", ".log")))
        self._pid = 0
        self._ended = False

    @property
    def pid(self) -> int:
        """Host pid of the runsc that waits for it."""
        return self._pid

    async def start(self) -> None:
        """Run it. Raises RuntimeFailed, IllegalTransition when the container has ended; then nothing of it is left."""
        try:
            await to_thread.run_sync(write_json, self._files.process, self._host.process(process(self._spec.process)))
            self._pid = await self._launch()
        except BaseException:
            with anyio.CancelScope(shield=True, deadline=anyio.current_time() + self._host.runsc.settings.timeouts.kill):
                await self._delete_logged()
            raise

    async def _launch(self) -> int:
        spec, files, runsc = self._spec, self._files, self._host.runsc
        flags = ["--detach", "--process", str(files.process), "--pid-file", str(files.pid), "--internal-pid-file", str(files.guest_pid)]
        if spec.console is not None:
            flags += ["--console-socket", str(spec.console)]
        monitor = await self._host.present()
        try:
            return await monitor.exec(
                spec.id,
                runsc.argv("exec", *flags, self._container, log=files.log),
                cwd=self._bundle,
                pid_file=files.pid,
                stdin=spec.stdin,
                stdout=spec.stdout,
                stderr=spec.stderr,
                env=runsc.settings.env,
                timeout=runsc.settings.timeouts.exec,
            )
        except LaunchFailed as exc:
            failure = await runsc.launch_failure("exec", exc.exit_code, exc.stderr_tail, files.log)
            if any("container not running" in line or "not running" in line for line in failure.log_tail):
                raise IllegalTransition("the container has ended") from failure
            raise failure from exc

    async def wait(self) -> ExitStatus:
        """Its exit. NotFound once deleted."""
        status = await self._host.monitor.wait(self._spec.id)
        self._ended = True
        return status

    async def kill(self, signal: int) -> None:
        """Signal the guest's process itself; ended is success."""
        pid = await to_thread.run_sync(self._guest_pid)
        if pid is None or self._ended:
            return
        with contextlib.suppress(RuntimeFailed):  # it has ended: there is no such process
            await self._signal(pid, signal)

    async def delete(self) -> None:
        """Kill whatever is left of it, children included, and remove its traces. Raises TimedOut when it does not end."""
        await self._end_guests()  # when that fails the files stay: they tell which processes, now and after a restart
        try:
            with contextlib.suppress(MonitorGone, NotFound):
                await self._forget()
        finally:
            await to_thread.run_sync(self._files.remove)

    async def end_orphan(self) -> None:
        """``delete`` of one whose runsc a monitor has killed with its caller's connection. Never raises for it."""
        try:
            await self._end_guests()
        except BridgeError as exc:
            _logger.warning("what an earlier server executed in %s is left: %s", self._container[:13], exc)
        finally:
            await to_thread.run_sync(self._files.remove)

    async def _end_guests(self) -> None:
        """The process and everyone below it, again until nobody is found: they may fork meanwhile."""
        top = await to_thread.run_sync(self._guest_pid)
        if top is None or self._ended:
            return
        for _ in range(_ROUNDS):
            try:
                parents = await self._host.runsc.processes(self._container)
            except RuntimeFailed as exc:
                _logger.debug("the processes of %s can't be listed: %s", self._container[:13], exc)
                return
            left = descendants(parents, top) | ({top} & parents.keys())
            if not left:
                return
            # From below, so that a parent is there to be found by as long as a child is.
            for pid in sorted(left, reverse=True):
                with contextlib.suppress(RuntimeFailed):
                    await self._signal(pid, _KILL)

    async def _forget(self) -> None:
        timeout = self._host.runsc.settings.timeouts.kill
        if not self._ended:
            with anyio.move_on_after(timeout) as scope:
                await self.wait()
            if scope.cancelled_caught:
                await self._host.monitor.kill(self._spec.id, _KILL)
                raise TimedOut(f"an exec in container {self._container} did not end within {timeout:g} s of SIGKILL")
        await self._host.monitor.forget(self._spec.id)

    async def _signal(self, pid: int, signal: int) -> None:
        timeout = self._host.runsc.settings.timeouts.kill
        await self._host.runsc.check("kill", "--pid", str(pid), self._container, str(signal), timeout=timeout)

    def _guest_pid(self) -> int | None:
        try:
            return int(self._files.guest_pid.read_text())
        except (OSError, ValueError):
            return None

    async def _delete_logged(self) -> None:
        try:
            await self.delete()
        except BridgeError as exc:
            _logger.warning("what is left of a failed exec can't be removed: %s", exc)


async def end_orphans(host: GvisorHost, container_id: str, bundle: Path) -> None:
    """End the execs that a lost server had in a container: their callers are gone, and only the guest knows their processes.

    What withstands is logged: it must not keep the container from being taken over, and ends with it.
    """
    for file in await to_thread.run_sync(lambda: sorted(bundle.glob("exec-*.json"))):
        orphan = GvisorExec(host, container_id, ExecSpec(file.stem.removeprefix("exec-"), {}), bundle)
        await orphan.end_orphan()
