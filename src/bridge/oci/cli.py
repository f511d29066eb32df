"""The command line of a runc-compatible runtime: composes argv and runs the verbs that need no monitor.

``run`` and ``exec`` leave a process behind, so the monitor runs those; here they are only composed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anyio import to_thread

from bridge.errors import RuntimeFailed, TimedOut
from bridge.host import files, mounts, process
from bridge.host.runtime_words import merge, parse_log, start_code
from bridge.ports.host import RuntimeTimeouts


@dataclass(frozen=True, slots=True)
class OciSettings:
    """One handler's runtime. ``path`` is the binary's absolute path, ``root`` the runtime's own state directory.

    ``env`` is the runtime's whole environment (not the container's); ``run_args`` are further flags of ``run``.
    """

    handler: str
    path: Path
    root: Path
    systemd_cgroup: bool = False
    global_args: tuple[str, ...] = ()
    run_args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=lambda: {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"})
    timeouts: RuntimeTimeouts = field(default_factory=RuntimeTimeouts)


class OciCli:
    """See the module docstring."""

    def __init__(self, settings: OciSettings) -> None:
        self.settings = settings
        self._prefix = [str(settings.path), "--root", str(settings.root), *settings.global_args]
        if settings.systemd_cgroup:
            self._prefix.append("--systemd-cgroup")

    def argv(self, verb: str, *args: str, log: Path | None = None) -> list[str]:
        """The argv of one invocation; with ``log`` the runtime writes its messages there as JSON lines."""
        logging = [] if log is None else ["--log", str(log), "--log-format", "json"]
        return [*self._prefix, *logging, verb, *args]

    def state_dir(self, container_id: str) -> Path:
        """Where the runtime keeps a container's state (runc, crun and youki alike); there as long as it knows the container."""
        return self.settings.root / container_id

    def failure(self, verb: str, exit_code: int | None, tail: Sequence[str], *, hint: str = "") -> RuntimeFailed:
        """The error for a failed invocation that said ``tail``."""
        return RuntimeFailed(
            handler=self.settings.handler, verb=verb, exit_code=exit_code, log_tail=tail, hint=hint, start_code=start_code(tail)
        )

    async def run(self, verb: str, *args: str, timeout: float) -> process.Completed:
        """Run ``verb`` to its end, whatever its exit code. Raises RuntimeFailed when it times out, HostError when it can't be run."""
        try:
            return await process.run(self.argv(verb, *args), env=self.settings.env, timeout=timeout)
        except TimedOut as exc:
            raise self.failure(verb, None, ()) from exc

    async def check(self, verb: str, *args: str, timeout: float) -> bytes:
        """Run ``verb`` and return its stdout. Raises RuntimeFailed with its words when it fails."""
        done = await self.run(verb, *args, timeout=timeout)
        if done.returncode:
            raise self.failure(verb, done.returncode, merge((), done.stderr.decode(errors="replace").splitlines()))
        return done.stdout

    async def delete(self, container_id: str, *, force: bool = False) -> None:
        """``delete``: remove the runtime's state and cgroup. ``force`` kills first. Unknown to the runtime is success."""
        state = self.state_dir(container_id)
        try:
            await self._delete(container_id, force=force)
        except RuntimeFailed:
            if not await to_thread.run_sync(state.exists):
                return
            await mounts.unmount_tree(state)
            await self._delete(container_id, force=force)
        if await to_thread.run_sync(state.exists):
            # runc guards its binary by a mount in there while it works (CVE-2019-5736), and one that was killed then leaves it.
            await mounts.unmount_tree(state)
            await files.remove_tree(state)

    async def _delete(self, container_id: str, *, force: bool) -> None:
        flags = ["--force"] if force else []
        await self.check("delete", *flags, container_id, timeout=self.settings.timeouts.delete)

    async def kill(self, container_id: str, signal: int) -> None:
        """``kill``: signal a container's first process. Raises RuntimeFailed."""
        await self.check("kill", container_id, str(signal), timeout=self.settings.timeouts.kill)

    async def state(self, container_id: str) -> Mapping[str, Any]:
        """``state``: the OCI state object. Raises RuntimeFailed, for an unknown container too."""
        return self._object("state", await self.check("state", container_id, timeout=self.settings.timeouts.probe))

    async def list(self) -> Sequence[Mapping[str, Any]]:
        """``list``: every container under the state root."""
        found = self._json("list", await self.check("list", "--format", "json", timeout=self.settings.timeouts.probe))
        return [item for item in found or () if isinstance(item, dict)]

    async def features(self) -> Mapping[str, Any] | None:
        """``features``: the OCI features object, or None when the runtime has no such verb (crun before 1.9)."""
        done = await self.run("features", timeout=self.settings.timeouts.probe)
        return self._object("features", done.stdout) if done.returncode == 0 else None

    async def version(self) -> str:
        """The text of ``--version``."""
        return (await self.check("--version", timeout=self.settings.timeouts.probe)).decode(errors="replace")

    async def help(self, verb: str) -> str:
        """The help text of ``verb``; empty when it has none."""
        done = await self.run(verb, "--help", timeout=self.settings.timeouts.probe)
        return (done.stdout + done.stderr).decode(errors="replace")

    def _object(self, verb: str, text: bytes) -> Mapping[str, Any]:
        found = self._json(verb, text)
        if not isinstance(found, dict):
            raise self.failure(verb, 0, ("its output is not a JSON object",))
        return found

    def _json(self, verb: str, text: bytes) -> Any:
        try:
            return json.loads(text)
        except ValueError as exc:
            raise self.failure(verb, 0, (f"its output is not JSON: {exc}",)) from exc


def read_log(path: Path, *, limit: int = 1 << 16) -> tuple[str, ...]:
    """The last messages of a runtime's log file; empty when it wrote none. Blocks: call from a worker thread."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - limit))
            return parse_log(file.read().decode(errors="replace"))
    except FileNotFoundError:
        return ()
