"""The verbs of a shim's binary: start, delete and the flag -info, as containerd calls them (pkg/shim there, and its docs/runtime-v2).

``start`` leaves a daemon of its own behind, the shim, and prints where it listens; for a further container of a pod it prints the
address of the pod's shim and starts nothing. ``delete`` cleans up after a shim that died.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bridge import log
from bridge._proto.containerd.runtime.bootstrap.v1 import BootstrapParams, Extension
from bridge._proto.containerd.task.v2 import DeleteResponse
from bridge._proto.containerd.types import RuntimeInfo
from bridge.errors import CorruptData, RuntimeFailed, TimedOut
from bridge.host import process
from bridge.ports.runtime import ExitStatus
from bridge.shimv2.bootstrap import ShimAddress, parse_start
from bridge.shimv2.encoding import decode, nanoseconds
from bridge.wire.codec import encode

if TYPE_CHECKING:
    from bridge._proto.containerd.types import Any

_TAIL: Final = 20
"""Lines of a failed verb's output that the error quotes."""
_INFO_SECONDS: Final = 10.0
_INFO, _DEBUG = 0, -4
"""Levels of a shim's log (containerd's bootstrap.proto)."""
_NEW_STDIN: Final = "started through the deprecated API"
"""What a shim that wants the newer message says to an older one (containerd's pkg/shim/compat.go)."""

_logger = log.get("shimv2.verbs")


@dataclass(slots=True)
class ShimBinary:
    """How to run a shim's binary. Time-outs are in seconds.

    ``events`` is the socket that takes its events (see ``events``). ``publisher`` is what ``-publish-binary`` names: shims of old
    run it for events, Kata's refuses to start when it is empty. ``env`` is added to a small environment: nothing else of the
    server's own reaches the shim. A bundle's directory has the name of its task: "delete" looks for it so.
    """

    path: Path
    handler: str
    namespace: str = "default"
    events: Path | None = None
    publisher: Path = Path("/bin/true")
    env: Mapping[str, str] = field(default_factory=dict)
    debug: bool = False
    start_timeout: float = 30.0
    delete_timeout: float = 30.0
    _wants_bootstrap: bool = field(default=False, init=False)
    """Shims take their options on stdin; containerd's own, since 2.3, within a message that those before it refuse."""

    async def start(self, task_id: str, bundle: Path, *, options: Any | None = None) -> ShimAddress:
        """Start the shim of ``bundle``, or find that of its pod, and say where it listens. ``options`` are the handler's.

        Raises RuntimeFailed with what it printed on stderr, HostError when it can't be run; else as ``bootstrap.parse_start``.
        """
        flags = ["-id", task_id]
        plain = b"" if options is None else encode(options)
        if not self._wants_bootstrap:
            try:
                done = await self._run("start", flags, cwd=bundle, input=plain, timeout=self.start_timeout)
                return parse_start(done.stdout)
            except RuntimeFailed as exc:
                if not any(_NEW_STDIN in line for line in exc.log_tail):
                    raise
                self._wants_bootstrap = True
        done = await self._run("start", flags, cwd=bundle, input=self._bootstrap(task_id, options), timeout=self.start_timeout)
        return parse_start(done.stdout)

    def _bootstrap(self, task_id: str, options: Any | None) -> bytes:
        params = BootstrapParams(
            instance_id=task_id,
            namespace=self.namespace,
            log_level=_DEBUG if self.debug else _INFO,
            containerd_ttrpc_address=self._events_address(),
            containerd_binary=str(self.publisher),
            extensions=[] if options is None else [Extension(value=options)],
        )
        return encode(params)

    async def delete(self, task_id: str, bundle: Path) -> ExitStatus:
        """Clean up after the dead shim of ``bundle``, and say how its container ended. Raises RuntimeFailed, HostError, CorruptData."""
        flags = ["-id", task_id, "-bundle", str(bundle)]
        done = await self._run("delete", flags, cwd=bundle, timeout=self.delete_timeout)
        if done.stderr.strip():
            _logger.info("handler %r: delete %s: %s", self.handler, task_id, done.stderr.decode(errors="replace").strip()[:2000])
        answer = decode(DeleteResponse, done.stdout)
        return exit_status(answer.exit_status, nanoseconds(answer.exited_at))

    async def info(self, options: Any | None = None) -> RuntimeInfo:
        """What the binary says of itself, given the handler's ``options``. Shims before containerd 2.0 don't know the flag.

        Raises RuntimeFailed, HostError, CorruptData.
        """
        data = b"" if options is None else encode(options)
        done = await self._run("-info", [], cwd=None, input=data, timeout=_INFO_SECONDS)
        try:
            return decode(RuntimeInfo, done.stdout)
        except CorruptData as exc:
            raise CorruptData(f"handler {self.handler!r}: {self.path} -info printed {exc.message}") from exc

    def environment(self) -> dict[str, str]:
        """The environment of every verb, and so of the shim."""
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "GOMAXPROCS": "2",
            "MAX_SHIM_VERSION": "2",  # what every containerd says, those that speak 3 too
            "NAMESPACE": self.namespace,
            "TTRPC_ADDRESS": self._events_address(),
            "GRPC_ADDRESS": "",
            **self.env,
        }

    def argv(self, verb: str, flags: Sequence[str]) -> list[str]:
        """The command line of ``verb``, whose own ``flags`` come before it: Go's flag package stops at the first plain word."""
        if verb.startswith("-"):
            return [str(self.path), verb]
        given = ["-namespace", self.namespace, "-address", "", "-publish-binary", str(self.publisher), *flags]
        return [str(self.path), *given, *(["-debug"] if self.debug else []), verb]

    def _events_address(self) -> str:
        return "" if self.events is None else str(self.events)

    async def _run(self, verb: str, flags: Sequence[str], *, cwd: Path | None, timeout: float, input: bytes = b"") -> process.Completed:
        argv = self.argv(verb, flags)
        try:
            done = await process.run(argv, input=input, env=self.environment(), cwd=cwd, timeout=timeout)
        except TimedOut as exc:
            raise RuntimeFailed(
                handler=self.handler, verb=verb, exit_code=None, log_tail=[f"no end within {timeout:g} s"], hint=str(self.path)
            ) from exc
        if done.returncode != 0:
            said = done.stderr if done.stderr.strip() else done.stdout
            tail = said.decode(errors="replace").strip().splitlines()[-_TAIL:]
            raise RuntimeFailed(handler=self.handler, verb=verb, exit_code=done.returncode, log_tail=tail, hint=str(self.path))
        return done


def exit_status(code: int, at_ns: int) -> ExitStatus:
    """A shim's exit code as the port's: shims say 128 + N for a process that signal N ended."""
    return ExitStatus(code & 0xFF, code - 128 if 128 < code <= 192 else None, at_ns=at_ns)
