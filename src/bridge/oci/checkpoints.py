"""Checkpoints of a container of a runc-compatible runtime, by its verbs pause, resume, checkpoint and restore: CRIU does the work.

What CRIU reads besides is its own matter: /etc/criu/runc.conf and default.conf (``tcp-established``, ``ext-unix-sk`` …).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anyio import to_thread

from bridge import log as logs
from bridge.errors import HostError, RuntimeFailed, TimedOut
from bridge.host import files, process
from bridge.monitor.protocol import LaunchFailed
from bridge.oci.cli import OciCli
from bridge.oci.dialect import Launch, flag, switch
from bridge.oci.runtime import OciRuntime
from bridge.ports.runtime import ContainerSpec, Feature, Support

_logger = logs.get("oci.checkpoints")
_RESTORE = "restore"
DUMP_LOG, RESTORE_LOG = "dump.log", "restore.log"
"""What CRIU writes into the directory for its work."""
_CRUN, _CRUN_EMPTY = "crun ", "/run/crun/.empty-directory"
_ERRORS = 6
_LOG_BYTES = 1 << 16


def launch_words(cli: OciCli, spec: ContainerSpec, pid_file: Path, console: Path | None) -> tuple[str, list[str]]:
    """The verb that starts a container, and its flags."""
    words, verb = cli.dialect.flags, cli.dialect.launch if spec.restore is None else _RESTORE
    flags = [] if verb is Launch.CREATE else switch(words.detach)
    flags += [*flag(words.bundle, spec.bundle), *flag(words.pid_file, pid_file), *cli.settings.run_args]
    if spec.restore is not None:
        flags += [*flag(words.images, spec.restore), *flag(words.work, spec.bundle)]
    if console is not None:
        flags += flag(words.console, console)
    return verb, flags


def restorable(oci: Mapping[str, Any], version: str, bundle: Path) -> Mapping[str, Any]:
    """The spec as the runtime can restore it. Blocks. Raises HostError.

    crun hides directories by an empty one below its root. When it checkpoints it takes that for its default root, when it restores for
    the real one, so CRIU misses the former (crun 1.28, src/libcrun/criu.c, get_shared_empty_directory_path): told as a mount, it doesn't.
    """
    if not version.startswith(_CRUN):
        return oci
    empty = bundle / "empty"
    try:
        empty.mkdir(mode=0o555, exist_ok=True)
    except OSError as exc:
        raise HostError(f"can't make {empty}: {exc.strerror}", errno=exc.errno) from exc
    told = {"destination": _CRUN_EMPTY, "type": "bind", "source": str(empty), "options": ["bind", "ro"]}
    return {**oci, "mounts": [*(oci.get("mounts") or ()), told]}


class Checkpointed:
    """The part of OciContainer that is bridge.ports.checkpoints.Checkpointing."""

    __slots__ = ()
    _runtime: OciRuntime
    _spec: ContainerSpec

    async def pause(self) -> None:
        """See the port: one runtime invocation, as each of these."""
        cli = self._runtime.cli
        await cli.check("pause", self._spec.id, timeout=cli.settings.timeouts.exec)

    async def resume(self) -> None:
        """See the port."""
        cli = self._runtime.cli
        try:
            await cli.check("resume", self._spec.id, timeout=cli.settings.timeouts.exec)
        except RuntimeFailed as exc:
            if exc.exit_code is None or await self._is_paused():
                raise

    async def _failure(self, verb: str, exc: LaunchFailed, log: Path) -> RuntimeFailed:
        """The error of a launch that failed; of a restore with CRIU's words."""
        found = await self._runtime.failure(verb, exc, log)
        if self._spec.restore is None:
            return found
        said = await to_thread.run_sync(errors_of, self._spec.bundle / RESTORE_LOG)
        return self._runtime.cli.failure(verb, exc.exit_code, (*found.log_tail, *said))

    async def _forget_images(self) -> None:
        """It runs, and what it was restored from only takes room. What can't be removed now goes with the container."""
        if self._spec.restore is not None:
            try:
                await files.remove_tree(self._spec.restore)
            except HostError as exc:
                _logger.warning("container %s: its checkpoint stays until it is removed: %s", self._spec.id[:13], exc)

    async def _is_paused(self) -> bool:
        try:
            return (await self._runtime.cli.state(self._spec.id)).get("status") == "paused"
        except RuntimeFailed:  # it has ended, and its state is gone
            return False

    async def checkpoint(self, images: Path, work: Path, *, timeout: float) -> None:
        """See the port."""
        cli = self._runtime.cli
        words = cli.dialect.flags
        flags = [*flag(words.images, images), *flag(words.work, work), *switch(words.running)]
        try:
            await cli.check("checkpoint", *flags, self._spec.id, timeout=timeout)
        except RuntimeFailed as exc:
            said = await to_thread.run_sync(errors_of, work / DUMP_LOG)
            raise cli.failure("checkpoint", exc.exit_code, (*exc.log_tail, *said)) from exc


def errors_of(log: Path) -> Sequence[str]:
    """The last lines of a log of CRIU's that tell of errors, without their times; none when there is no log. Blocks."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _LOG_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ()
    return [line.partition(") ")[2] or line for line in text.splitlines() if "Error" in line][-_ERRORS:]


async def criu(search: str, *, timeout: float) -> Feature:
    """What ``criu check`` says on this node of the criu in ``search`` (as PATH): whether the kernel can do what it needs."""
    path = await to_thread.run_sync(lambda: shutil.which("criu", path=search))
    if path is None:
        return Feature(Support.UNSUPPORTED, "criu is not installed")
    try:
        done = await process.run([path, "check"], env={"PATH": search}, timeout=timeout)
    except (HostError, TimedOut) as exc:
        return Feature(Support.UNSUPPORTED, f"criu check: {exc.message}")
    said = [line.strip() for line in (done.stderr + done.stdout).decode(errors="replace").splitlines() if line.strip()]
    if done.returncode:
        errors = [line for line in said if line.startswith("Error")] or said
        return Feature(Support.UNSUPPORTED, f"criu check: {'; '.join(errors[:_ERRORS]) or f'exit code {done.returncode}'}")
    return Feature(Support.SUPPORTED, f"criu check of {path}")
