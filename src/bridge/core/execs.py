"""ExecSync: run a command in a container, collect its output, and leave nothing of it behind (design promise 6).

It ends by its timeout plus the drain time whatever the process does with its stdio: the exit code decides, and output that
some grandchild still holds open is awaited only ``exec_drain`` seconds (kubernetes#92057, containerd#10094).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import anyio

from bridge import log
from bridge.core import pod_namespaces, spec
from bridge.core.entities import Container, ContainerState
from bridge.core.live import Live, LiveContainer
from bridge.core.settings import CoreSettings
from bridge.core.store import Store
from bridge.errors import BridgeError, IllegalTransition, InvalidRequest, TimedOut
from bridge.host.pipes import Collector, make_pipe
from bridge.ports.runtime import ExecProcess, ExecSpec

_logger = log.get("core.execs")
_DELETE_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class ExecResult:
    """Output (each at most ``exec_output_limit`` bytes) and exit code."""

    stdout: bytes
    stderr: bytes
    exit_code: int


class ExecService:
    """Commands inside running containers."""

    def __init__(self, *, store: Store, live: Live, settings: CoreSettings) -> None:
        self._store = store
        self._live = live
        self._settings = settings

    async def run(self, container_id: str, argv: Sequence[str], timeout: float) -> ExecResult:
        """Run ``argv``; ``timeout`` in seconds, 0 means none. Belongs to its caller: cancelled with it.

        Raises NotFound, InvalidRequest, IllegalTransition (not running), TimedOut, RuntimeFailed.
        """
        if not argv:
            raise InvalidRequest("must not be empty", field="cmd")
        if timeout < 0:
            raise InvalidRequest(f"{timeout:g} must not be negative", field="timeout")
        await self._live.reach(self._store.container(container_id).sandbox_id)
        container = self._running(container_id)
        entry = self._live.container(container.id)
        owner = pod_namespaces.root_ids(self._store.sandboxes[container.sandbox_id].config)
        stdout, stdout_in = self._collector(owner)
        try:
            stderr, stderr_in = self._collector(owner)
            try:
                return await self._collect(entry, argv, timeout, (stdout, stdout_in), (stderr, stderr_in))
            finally:
                stderr.close()
        finally:
            stdout.close()

    def _running(self, ident: str) -> Container:
        container = self._store.container(ident)
        if container.state is not ContainerState.RUNNING:
            raise IllegalTransition(f"container {ident} is {container.state}, not running")
        return container

    def _collector(self, owner: tuple[int, int] | None) -> tuple[Collector, int]:
        read_end, write_end = make_pipe(owner)
        return Collector(read_end, self._settings.exec_output_limit), write_end

    async def _collect(
        self,
        entry: LiveContainer,
        argv: Sequence[str],
        timeout: float,
        out: tuple[Collector, int],
        err: tuple[Collector, int],
    ) -> ExecResult:
        process: ExecProcess | None = None
        code: int | None = None
        try:
            with anyio.move_on_after(timeout or None):
                try:
                    described = spec.process_for_exec({"process": entry.process}, argv, tty=False)
                    request = ExecSpec(id=secrets.token_hex(16), process=described, stdout=out[1], stderr=err[1])
                    process = await entry.handle.exec(request)
                finally:
                    os.close(out[1])
                    os.close(err[1])
                code = (await process.wait()).code
        finally:
            if process is not None and code is None:
                await _delete(process)
        if code is None or process is None:
            raise TimedOut(f"command {argv[0]!r} timed out: {timeout:g} s have passed")
        await self._drain(out[0], err[0])
        await _delete(process)
        return ExecResult(*self._fitting(out[0].data, err[0].data), code)

    def _fitting(self, stdout: bytes, stderr: bytes) -> tuple[bytes, bytes]:
        """Both streams cut so that one answer can carry them: each may have what the other leaves, and half in any case."""
        limit = self._settings.exec_answer_limit
        if len(stdout) + len(stderr) > limit:
            stdout = stdout[: max(limit - len(stderr), limit // 2)]
            stderr = stderr[: limit - len(stdout)]
        return stdout, stderr

    async def _drain(self, out: Collector, err: Collector) -> None:
        out.drain()
        err.drain()
        with anyio.move_on_after(self._settings.exec_drain):
            await out.ended.wait()
            await err.ended.wait()


async def _delete(process: ExecProcess) -> None:
    with anyio.CancelScope(shield=True, deadline=anyio.current_time() + _DELETE_TIMEOUT):
        try:
            await process.delete()
        except BridgeError as exc:
            _logger.warning("what is left of an exec can't be removed: %s", exc)
