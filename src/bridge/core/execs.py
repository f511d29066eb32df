"""ExecSync: run a command in a container, collect its output, and leave nothing of it behind (design promise 6).

It ends by its timeout plus the drain time whatever the process does with its stdio: the exit code decides, and output that
some grandchild still holds open is awaited only ``exec_drain`` seconds (kubernetes#92057, containerd#10094).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import anyio

from bridge.core.settings import CoreSettings
from bridge.core.stream_requests import Stdio
from bridge.core.stream_sessions import Session
from bridge.core.streams import StreamService
from bridge.errors import InvalidRequest, TimedOut
from bridge.host.pipes import Collector


@dataclass(frozen=True, slots=True)
class ExecResult:
    """Output (each at most ``exec_output_limit`` bytes) and exit code."""

    stdout: bytes
    stderr: bytes
    exit_code: int


class ExecService:
    """Commands inside running containers, each to its end: sessions (core/streams) whose output is collected here."""

    def __init__(self, *, streams: StreamService, settings: CoreSettings) -> None:
        self._streams = streams
        self._settings = settings

    async def run(self, container_id: str, argv: Sequence[str], timeout: float) -> ExecResult:
        """Run ``argv``; ``timeout`` in seconds, 0 means none. Belongs to its caller: cancelled with it.

        Raises NotFound, InvalidRequest, IllegalTransition (not running), TimedOut, RuntimeFailed.
        """
        if not argv:
            raise InvalidRequest("must not be empty", field="cmd")
        if timeout < 0:
            raise InvalidRequest(f"{timeout:g} must not be negative", field="timeout")
        result: ExecResult | None = None
        with anyio.move_on_after(timeout or None) as limit:
            async with self._streams.exec(container_id, argv, Stdio(stdout=True, stderr=True)) as session:
                result = await self._collect(session, limit)
        if result is None:
            raise TimedOut(f"command {argv[0]!r} timed out: {timeout:g} s have passed")
        return result

    async def _collect(self, session: Session, limit: anyio.CancelScope) -> ExecResult:
        with closing(self._collector(session, "stdout")) as out, closing(self._collector(session, "stderr")) as err:
            code = await session.wait()
            limit.deadline = math.inf  # it ended in time: what is left to do is ours
            await self._drain(out, err)
            return ExecResult(*self._fitting(out.data, err.data), code)

    def _collector(self, session: Session, name: str) -> Collector:
        return Collector(session.take(name), self._settings.exec_output_limit)

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
