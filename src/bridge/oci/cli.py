"""The command line of an OCI runtime, in its own dialect of runc's: composes argv and runs the verbs that need no monitor.

``run`` and ``exec`` leave a process behind, so the monitor runs those; here they are only composed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread

from bridge.errors import RuntimeFailed, TimedOut
from bridge.host import files, mounts, process
from bridge.host.runtime_words import merge, parse_log, start_code
from bridge.oci.dialect import Dialect, switch
from bridge.ports.host import RuntimeTimeouts

_STATE_POLL = 0.05


@dataclass(frozen=True, slots=True)
class OciSettings:
    """One handler's runtime. ``path`` is the binary's absolute path, ``root`` the runtime's own state directory.

    ``env`` is the runtime's whole environment (not the container's); ``run_args`` are further flags of ``run``. ``dialect`` tells
    what else differs from runc's command line.
    """

    handler: str
    path: Path
    root: Path
    systemd_cgroup: bool = False
    global_args: tuple[str, ...] = ()
    run_args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=lambda: {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"})
    timeouts: RuntimeTimeouts = field(default_factory=RuntimeTimeouts)
    dialect: Dialect = field(default_factory=Dialect)


class OciCli:
    """See the module docstring."""

    def __init__(self, settings: OciSettings) -> None:
        self.settings = settings
        self.dialect = settings.dialect
        root = [word.format(root=settings.root) for word in self.dialect.root]
        self._prefix = [str(settings.path), *root, *settings.global_args, *(self.dialect.systemd if settings.systemd_cgroup else ())]

    def argv(self, verb: str, *args: str, log: Path | None = None) -> list[str]:
        """The argv of one invocation of runc's ``verb``; with ``log`` the runtime writes its messages there, if it can."""
        logging = [] if log is None else [word.format(log=log) for word in self.dialect.log]
        return [*self._prefix, *logging, *self.dialect.verb(verb), *args]

    def deletion(self, container_id: str) -> list[str]:
        """The argv that removes a container, with force where there is such a flag."""
        return self.argv("delete", *switch(self.dialect.flags.force), container_id)

    async def knows(self, container_id: str) -> bool:
        """Whether the runtime keeps state of a container. Runs nothing where its directory can tell."""
        path = self.dialect.state_path(self.settings.root, container_id)
        if path is not None:
            return await to_thread.run_sync(path.exists)
        return (await self.run("state", container_id, timeout=self.settings.timeouts.probe)).returncode == 0

    def containers(self) -> Sequence[str]:
        """Names in the directory where containers' states are; none where there is no such directory. Blocks."""
        path = self.dialect.state_path(self.settings.root, "{id}")
        if path is None or path.name != "{id}":
            return ()
        try:
            return os.listdir(path.parent)
        except FileNotFoundError:
            return ()

    def failure(self, verb: str, exit_code: int | None, tail: Sequence[str], *, hint: str = "") -> RuntimeFailed:
        """The error for a failed invocation that said ``tail``."""
        code = self.dialect.start_codes.get(exit_code or 0) or start_code(tail)
        return RuntimeFailed(handler=self.settings.handler, verb=verb, exit_code=exit_code, log_tail=tail, hint=hint, start_code=code)

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
        state = self.dialect.state_path(self.settings.root, container_id)
        try:
            await self._delete(container_id, force=force)
        except RuntimeFailed as exc:
            if not await self.knows(container_id):
                return
            if exc.exit_code is None:  # it hangs, and would again
                raise
            if state is not None:
                await mounts.unmount_tree(state)
            await self._delete(container_id, force=force)
        if state is not None and await to_thread.run_sync(state.exists):
            # runc guards its binary by a mount in there while it works (CVE-2019-5736), and one that was killed then leaves it.
            await mounts.unmount_tree(state)
            await files.remove_tree(state)

    async def _delete(self, container_id: str, *, force: bool) -> None:
        flags = switch(self.dialect.flags.force) if force else []
        if force and not flags:
            await self._kill_first(container_id)
        await self.check("delete", *flags, container_id, timeout=self.settings.timeouts.delete)

    async def _kill_first(self, container_id: str) -> None:
        """What ``--force`` does, for a runtime without. A container that can't be killed will be told by ``delete``."""
        done = await self.run("kill", container_id, "KILL", timeout=self.settings.timeouts.kill)
        with anyio.move_on_after(self.settings.timeouts.kill):
            if done.returncode == 0:
                await self.stopped(container_id)

    async def stopped(self, container_id: str) -> None:
        """Return once ``state`` says that a container has stopped, or that there is none; the caller sets the deadline."""
        while True:
            try:
                if (await self.state(container_id)).get("status") == "stopped":
                    return
            except RuntimeFailed:
                return
            await anyio.sleep(_STATE_POLL)

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
        if not self.dialect.features:
            return None
        done = await self.run("features", timeout=self.settings.timeouts.probe)
        return self._object("features", done.stdout) if done.returncode == 0 else None

    async def version(self) -> str:
        """The text of ``--version``; the binary's name where there is no such thing."""
        if not self.dialect.version:
            return self.settings.path.name
        return (await self.check(*self.dialect.version, timeout=self.settings.timeouts.probe)).decode(errors="replace")

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
