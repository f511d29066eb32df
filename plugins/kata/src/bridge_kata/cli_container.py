"""A container of kata-runtime: what the kit for OCI runtimes does, with signals and statistics by other ways.

The process that the pid file names is kata-shim: it stands on the host for a process in the guest, has its stdio, passes signals
on and ends with its exit code. A SIGKILL can't be passed on, so it goes by the ``kill`` verb; by the signal alone the process
in the guest would outlive its stand-in. Other signals go to the stand-in: the verb would also stop a container 10 s after a
SIGTERM, whatever grace was meant. Source: kata-containers/runtime 1.13, cli/kill.go and virtcontainers/container.go.
"""

from __future__ import annotations

import json
import signal as signals
import time
from collections.abc import Callable, Mapping
from typing import Any

import anyio

from bridge import log
from bridge.errors import BridgeError, RuntimeFailed
from bridge.host.cgroup_stats import CgroupStats, Memory
from bridge.oci.container import OciContainer
from bridge.oci.execs import OciExec
from bridge.oci.runtime import OciRuntime
from bridge.ports.runtime import ExecSpec, ExitStatus, Record

_logger = log.get("kata")
_PACE_SECONDS = 0.4
_TERM_SECONDS = 1.0


class CliContainer:
    """See the module docstring (bridge.ports.runtime.ContainerHandle)."""

    def __init__(self, runtime: OciRuntime, inner: OciContainer) -> None:
        self._runtime = runtime
        self._inner = inner
        self._look: CgroupStats | None = None
        self._looked = -_PACE_SECONDS
        self._looking = anyio.Lock()

    @property
    def id(self) -> str:
        """The container's."""
        return self._inner.id

    @property
    def record(self) -> Record:
        """Of its stand-in."""
        return self._inner.record

    @property
    def pid(self) -> int | None:
        """The stand-in's."""
        return self._inner.pid

    @property
    def cgroup(self) -> str | None:
        """None: it is in the guest."""
        return None

    async def start(self) -> int:
        """One runtime invocation."""
        return await self._inner.start()

    async def wait(self) -> ExitStatus:
        """The stand-in's exit, which is its own."""
        return await self._inner.wait()

    async def kill(self, signal: int, *, all_processes: bool = False) -> None:
        """By the stand-in, or for SIGKILL by the verb, which reaches all its processes; ended is success."""
        if signal != signals.SIGKILL or self.pid is None:
            await self._inner.kill(signal, all_processes=all_processes)
            return
        cli = self._runtime.cli
        try:
            await cli.check("kill", "--all", self.id, str(signal), timeout=cli.settings.timeouts.kill)
        except RuntimeFailed as exc:
            _logger.warning("container %s can't be killed in its guest, so its stand-in is: %s", self.id[:13], exc)
            await self._inner.kill(signal)

    async def exec(self, spec: ExecSpec) -> CliExec:
        """One runtime invocation."""
        return CliExec(await self._inner.exec(spec))

    async def attach(self, *, stdin: int | None, stdout: int | None, stderr: int | None, attached: Callable[[], None]) -> None:
        """To the stand-in's stdio."""
        await self._inner.attach(stdin=stdin, stdout=stdout, stderr=stderr, attached=attached)

    async def resize(self, width: int, height: int) -> None:
        """Of the stand-in's terminal, which passes it on."""
        await self._inner.resize(width, height)

    async def update(self, resources: Mapping[str, Any]) -> None:
        """One runtime invocation, none before the start."""
        await self._inner.update(resources)

    async def stats(self) -> CgroupStats | None:
        """By the verb ``events``, now or a moment ago."""
        async with self._looking:
            if self.pid is not None and time.monotonic() - self._looked >= _PACE_SECONDS:
                cli = self._runtime.cli
                text = await cli.check("events", "--stats", self.id, timeout=cli.settings.timeouts.probe)
                self._look, self._looked = parse_stats(text), time.monotonic()
        return self._look

    async def reopen_log(self) -> None:
        """After the log file was renamed."""
        await self._inner.reopen_log()

    async def release(self) -> None:
        """Free the runtime's state after the exit."""
        await self._inner.release()

    async def delete(self) -> None:
        """End it in the guest if it runs, then free all of it."""
        cli = self._runtime.cli
        if self.pid is not None and await cli.knows(self.id):
            with anyio.move_on_after(cli.settings.timeouts.kill):
                await self._end()
        await self._inner.delete()

    async def _end(self) -> None:
        try:
            await self.kill(signals.SIGKILL)
            await self._inner.wait()
        except BridgeError as exc:
            _logger.debug("container %s: %s", self.id[:13], exc)


class CliExec:
    """A command in the guest (bridge.ports.runtime.ExecProcess), by its stand-in."""

    def __init__(self, inner: OciExec) -> None:
        self._inner = inner
        self._ended = False

    @property
    def pid(self) -> int:
        """The stand-in's."""
        return self._inner.pid

    async def wait(self) -> ExitStatus:
        """Its exit."""
        status = await self._inner.wait()
        self._ended = True
        return status

    async def kill(self, signal: int) -> None:
        """Pass a signal on."""
        await self._inner.kill(signal)

    async def delete(self) -> None:
        """Ask it to end, since a SIGKILL reaches its stand-in alone; one that ignores that goes with its container."""
        try:
            if not self._ended:
                await self._inner.kill(signals.SIGTERM)
                with anyio.move_on_after(_TERM_SECONDS):
                    await self.wait()
        except BridgeError as exc:
            _logger.debug("a command's stand-in is gone: %s", exc)
        await self._inner.delete()


def parse_stats(text: bytes) -> CgroupStats | None:
    """What ``events --stats`` printed: runc's object of cgroup v1's counters; None when it is not that."""
    try:
        data = json.loads(text)["data"]
        memory, raw = data["memory"], data["memory"].get("raw") or {}
        usage = int(memory["usage"].get("usage", 0))
        limit = int(memory["usage"].get("limit", 0))
        return CgroupStats(
            at_ns=time.time_ns(),
            cpu_ns=_number(data["cpu"]["usage"], "total"),
            memory=Memory(
                usage=usage,
                working_set=max(0, usage - (_number(raw, "total_inactive_file", "inactive_file") or 0)),
                rss=_number(raw, "total_rss", "anon"),
                page_faults=_number(raw, "pgfault"),
                major_page_faults=_number(raw, "pgmajfault"),
                limit=limit if 0 < limit < 1 << 62 else None,
            ),
            processes=int((data.get("pids") or {}).get("current", 0)) or None,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        _logger.warning("the statistics of kata-runtime are not as documented: %s", exc)
        return None


def _number(table: Mapping[str, Any], *names: str) -> int | None:
    """The first of ``names`` that is there."""
    return next((int(table[name]) for name in names if name in table), None)
