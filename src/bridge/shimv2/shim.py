"""One running shim: its start, the connection to it, whether it lives, its last words, and its end."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
from pathlib import Path
from typing import TypeVar

import anyio
from anyio import to_thread
from betterproto2 import Message

from bridge import log
from bridge.errors import BridgeError, CorruptData, MonitorGone, NotFound, RuntimeFailed, ShimGone, TimedOut, Unavailable, Unsupported
from bridge.host.runtime_words import parse_log, start_code
from bridge.ports.host import Monitor
from bridge.shimv2.addresses import dial, socket_name
from bridge.shimv2.bootstrap import ShimAddress, read_address
from bridge.shimv2.client import NAMESPACE_KEY, TtrpcClient
from bridge.shimv2.runtime import ShimRuntime
from bridge.shimv2.task import ShimTask

M = TypeVar("M", bound=Message)
_DIAL_SECONDS = 5.0
_TAIL_BYTES = 16 << 10
_TEXT_LINE = re.compile(r'time=\S+ level=(\w+) msg=("(?:[^"\\]|\\.)*"|\S+)')
_LOG, _SPOOLED, _BOOTSTRAP = "log", "shim.log", "bootstrap.json"
_WRITTEN = (_BOOTSTRAP, "address", ".address", "shim.pid", ".shim.pid")

_logger = log.get("shimv2.shim")


class Shim:
    """See the module docstring. Made by ``start`` or ``load``; ``bundle`` is the directory that it was started in."""

    def __init__(self, runtime: ShimRuntime, ident: str, bundle: Path, address: ShimAddress) -> None:
        self._runtime = runtime
        self.id = ident
        self.bundle = bundle
        self.address = address
        self._dialling = anyio.Lock()
        self._client: TtrpcClient | None = None
        self._keeping = anyio.CancelScope()

    def keep(self) -> None:
        """Have its log read by each monitor: a shim that is about to open it waits for a reader, and what it says has a place then."""
        self._runtime.tasks.spawn(f"keep the log of shim {self.id[:13]}", self._keep)

    async def _keep(self) -> None:
        async def stay(monitor: Monitor) -> None:
            await spool(monitor, self.id, self.bundle)
            await monitor.wait(_spool_id(self.id))

        with self._keeping, contextlib.suppress(NotFound):  # forgotten meanwhile
            await self._runtime.lasting(stay, patience=math.inf)

    async def call(self, method: str, request: Message, response_type: type[M], *, timeout: float | None) -> M:
        """Call its task service. Raises RuntimeFailed with its words and the last of its log, ShimGone; else as TtrpcClient."""
        client = await self._connected()
        try:
            return await client.call(self.address.task_service, method, request, response_type, timeout=timeout)
        except RuntimeFailed as exc:
            raise await self._explained(method, exc) from exc
        except TimedOut as exc:
            words = "; ".join(await self.last_words()) or "it said nothing"
            raise TimedOut(f"{exc.message}; the shim's last words: {words}") from exc

    async def _connected(self) -> TtrpcClient:
        async with self._dialling:
            if self._client is None or self._client.closed.is_set():
                binary = self._runtime.settings.binary
                sock = await dial(self.address.address, timeout=_DIAL_SECONDS)
                self._client = TtrpcClient(sock, handler=binary.handler, metadata={NAMESPACE_KEY: binary.namespace})
            return self._client

    async def _explained(self, method: str, exc: RuntimeFailed) -> RuntimeFailed:
        said = [line for line in await self.last_words() if not any(line in word for word in exc.log_tail)]
        tail = (*exc.log_tail, *(f"shim: {line}" for line in said))
        code = start_code(exc.log_tail)
        return RuntimeFailed(handler=exc.handler, verb=method, exit_code=None, status="refused", log_tail=tail, start_code=code)

    async def last_words(self) -> tuple[str, ...]:
        """The last grave lines of its log."""
        return await to_thread.run_sync(_tail, self.bundle)

    async def is_serving(self) -> None:
        """Return once it answers calls, as it does when it has opened its log. Raises ShimGone, TimedOut."""
        with contextlib.suppress(NotFound, Unsupported):
            await ShimTask(self, self.id).shim_pid()

    async def is_alive(self) -> bool:
        """Whether it answers at its address."""
        if self._client is not None and not self._client.closed.is_set():
            return True
        try:
            await self._connected()
        except (ShimGone, Unsupported, CorruptData):
            return False
        return True

    def hang_up(self) -> None:
        """Close the connection. The shim goes on."""
        if self._client is not None:
            self._client.close()

    async def end(self) -> None:
        """Ask it to end, and make it end when it does not; remove its socket and its log's keeper. Repeatable.

        Only for one that holds nothing any more, or whose containers were cleaned up by its binary.
        """
        with contextlib.suppress(BridgeError):  # whatever it says: it ends now
            await ShimTask(self, self.id).shut_down()
        if not await self._is_gone():
            _logger.warning("handler %r: the shim of %s does not end by itself: killing it", self._runtime.settings.handler, self.id[:13])
            await to_thread.run_sync(end_process, self._runtime.settings.binary.path, self.id)
        await self.clear()

    async def _is_gone(self) -> bool:
        with anyio.move_on_after(self._runtime.settings.timeouts.kill):
            while True:
                if self._client is not None:
                    await self._client.closed.wait()
                if not await self.is_alive():
                    return True
        return False

    async def clear(self) -> None:
        """Remove what a dead one leaves: its socket, its log's keeper, the mark. Repeatable."""
        await self.leave()
        name = socket_name(self.address.address) if self.address.address else "\0"
        if not name.startswith("\0"):
            await to_thread.run_sync(lambda: Path(name).unlink(missing_ok=True))

    async def leave(self) -> None:
        """Have nothing to do with it any more, whether it goes on for others or not. Repeatable."""
        self.hang_up()
        self._keeping.cancel()
        await forget_log(self._runtime, self.id)
        await self._runtime.unmark(self.id)


async def start(runtime: ShimRuntime, ident: str, sandbox_id: str, bundle: Path) -> Shim:
    """Run the verb "start" in ``bundle``, which has a config.json, and connect. Raises RuntimeFailed, ShimGone; then nothing is left."""
    await runtime.mark(ident, sandbox_id, bundle, bundle)
    held = Shim(runtime, ident, bundle, ShimAddress(""))
    try:
        await runtime.lasting(lambda monitor: spool(monitor, ident, bundle))
        held.keep()
        await to_thread.run_sync(_clean, bundle)
        held.address = await runtime.settings.binary.start(ident, bundle, options=runtime.settings.options)
        await to_thread.run_sync(_write_bootstrap, bundle, held.address)
        await held.is_serving()
    except BaseException:
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + runtime.settings.timeouts.kill):
            await to_thread.run_sync(end_process, runtime.settings.binary.path, ident)
            await held.clear()
        raise
    _logger.debug("shim of %s listens at %s", ident[:13], held.address.address)
    return held


async def load(runtime: ShimRuntime, ident: str, bundle: Path) -> Shim | None:
    """The shim that was started in ``bundle``, dead or alive, its log not kept yet; None when none was."""
    try:
        return Shim(runtime, ident, bundle, await to_thread.run_sync(read_address, bundle))
    except (NotFound, CorruptData, Unsupported):
        return None


async def forget_log(runtime: ShimRuntime, ident: str) -> None:
    """Keep its log read no more. Repeatable; a monitor that is away has nothing to forget."""
    with contextlib.suppress(MonitorGone, Unavailable):
        await runtime.monitor.forget(_spool_id(ident))


async def spool(monitor: Monitor, ident: str, bundle: Path) -> None:
    """Have the monitor read the log of the shim that was or is to be started in ``bundle``."""
    await monitor.spool(_spool_id(ident), bundle / _LOG, bundle / _SPOOLED)


def _spool_id(ident: str) -> str:
    return f"shim-{ident}"


def _clean(bundle: Path) -> None:
    """Remove what an earlier start wrote there: some shims won't write it again."""
    for name in _WRITTEN:
        (bundle / name).unlink(missing_ok=True)


def _write_bootstrap(bundle: Path, address: ShimAddress) -> None:
    """As containerd does: from here a later server knows where the shim listens."""
    (bundle / _BOOTSTRAP).write_text(json.dumps({"version": address.version, "address": address.address, "protocol": "ttrpc"}))


def _tail(bundle: Path) -> tuple[str, ...]:
    text = ""
    for name in (f"{_SPOOLED}.1", _SPOOLED):
        with contextlib.suppress(OSError):
            text += (bundle / name).read_text(errors="replace")
    return words(text[-_TAIL_BYTES:])


def words(text: str) -> tuple[str, ...]:
    """The last grave lines of a shim's log: text as Go's logrus writes it, or JSON."""
    lines = []
    for line in text.splitlines():
        found = _TEXT_LINE.match(line)
        if found is None:
            lines.append(line)
        elif found[1] not in ("trace", "debug", "info"):
            lines.append(found[2].strip('"'))
    return parse_log("\n".join(lines))


def end_process(binary: Path, ident: str) -> None:
    """SIGKILL the shim of task ``ident``, known by its binary and its arguments, never by a pid alone. Blocks for milliseconds."""
    wanted, name = os.fsencode(binary.name), ident.encode()
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):
            argv = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
            if os.path.basename(argv[0]) == wanted and name in argv:
                os.kill(int(entry), signal.SIGKILL)


def runtime_pids(binary: Path, ident: str, bundle: Path) -> list[int]:
    """What a shim, of this ``binary``, runs for task ``ident``: an OCI runtime with the task and its bundle among its arguments.

    A shim itself names its task too, and so may an operator's command, but not with a path of the bundle. Blocks for milliseconds.
    """
    shim, name, place, found = os.fsencode(binary.name), ident.encode(), os.fsencode(bundle), []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                argv = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
                if name in argv and any(word.startswith(place) for word in argv) and os.path.basename(argv[0]) != shim:
                    found.append(int(entry))
    return found


def end_runtime(binary: Path, ident: str, bundle: Path) -> None:
    """SIGKILL them. Blocks for milliseconds."""
    for pid in runtime_pids(binary, ident, bundle):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
