"""A handler's trial: one throw-away container, run to its end, is the only honest answer to "does it work on this host?".

``features`` says what was compiled in, not whether this kernel, this cgroup set-up and this seccomp profile go together.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path

import anyio
from anyio import to_thread

from bridge import log
from bridge.errors import BridgeError
from bridge.host import cgroups, namespaces
from bridge.host.runtime_words import merge
from bridge.host.trial_bundle import MAPPING, exit_program, make_bundle, trial_spec
from bridge.host.user_namespaces import IdMaps, IdRange
from bridge.oci import strays
from bridge.oci.cli import OciCli
from bridge.oci.dialect import Launch, Scope, flag

_logger = log.get("oci.trial")


async def trial(cli: OciCli, bundle: Path, *, seccomp: bool, timeout: float, user_namespace: bool = False) -> str:
    """Run the trial in ``bundle``, which must not be on a noexec mount. Returns how the verification was done.

    With ``user_namespace`` in one that was made before, which owns the others: not every runtime joins it right.

    Raises RuntimeFailed with what the runtime said, and a hint that mends it where one is known. Leaves nothing behind.
    """
    program = exit_program(platform.machine())
    if program is None:
        return f"claimed, not tried: there is no trial program for {platform.machine()}"
    name, path = names(cli)
    await clear(bundle)
    try:
        pins = await _namespaces(bundle) if user_namespace else None
        spec = cli.dialect.noted(trial_spec(path, seccomp=seccomp, pins=pins), Scope.TRIAL)
        await to_thread.run_sync(make_bundle, bundle, program, dict(spec))
        await _run(cli, name, bundle, timeout)
    finally:
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + timeout):
            await clear(bundle)
    return "a trial container ran in one" if user_namespace else "a trial container ran"


def names(cli: OciCli) -> tuple[str, str]:
    """A trial container's id and its cgroupsPath.

    The same in each trial of this server, which so ends what a killed one left, but not the trial of another server here.
    """
    name = f"cri-bridge-trial-{cli.settings.handler}-{hashlib.sha256(os.fsencode(cli.settings.root)).hexdigest()[:8]}"
    return name, f"system.slice:cri-bridge:{name}" if cli.settings.systemd_cgroup else f"/{name}"


async def _namespaces(bundle: Path) -> Mapping[str, Path]:
    ids = (IdRange(MAPPING[0]["containerID"], MAPPING[0]["hostID"], MAPPING[0]["size"]),)
    return await namespaces.create(bundle / "ns", net=True, ipc=True, uts=True, hostname="", sysctls={}, user=IdMaps(ids, ids))


async def clear(bundle: Path) -> None:
    """Remove the bundle of a trial, and its namespaces."""
    await namespaces.remove(bundle / "ns")
    await to_thread.run_sync(lambda: shutil.rmtree(bundle, ignore_errors=True))


async def _run(cli: OciCli, name: str, bundle: Path, timeout: float) -> None:
    if await cli.knows(name):  # of a server that was killed in its trial
        await cli.delete(name, force=True)
    try:
        await _checked(cli, cli.dialect.launch, *flag(cli.dialect.flags.bundle, bundle), *_pid_file(cli, bundle), name, timeout=timeout)
        if cli.dialect.launch is Launch.CREATE:
            await _checked(cli, "start", name, timeout=timeout)
            with anyio.move_on_after(timeout) as scope:
                await cli.stopped(name)
            if scope.cancelled_caught:
                raise cli.failure("trial start", None, ("its container did not end",))
            await cli.delete(name)
    except BaseException:
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + cli.settings.timeouts.delete):
            await tidy(cli, name)
        raise


async def tidy(cli: OciCli, name: str) -> None:
    """End what a failed trial left, with its cgroup; what can't be is logged."""
    # What went wrong first is what is told. A runtime that was killed may know nothing of whom it started.
    try:
        try:
            await cli.delete(name, force=True)
        finally:
            if not cli.settings.systemd_cgroup:
                await to_thread.run_sync(strays.end_cgroup, f"/{name}", cli.settings.timeouts.kill)
    except BridgeError as exc:
        _logger.warning("what is left of a failed trial of handler %s can't be removed: %s", cli.settings.handler, exc)


def _pid_file(cli: OciCli, bundle: Path) -> list[str]:
    """``create`` may insist on one; ``run`` without detaching needs none."""
    return flag(cli.dialect.flags.pid_file, bundle / "pid") if cli.dialect.launch is Launch.CREATE else []


async def _checked(cli: OciCli, verb: str, *args: str, timeout: float) -> None:
    done = await cli.run(verb, *args, timeout=timeout)
    if done.returncode:
        said = merge((), done.stderr.decode(errors="replace").splitlines())
        raise cli.failure(f"trial {verb}", done.returncode, said, hint=mending("\n".join(said)))


def mending(said: str) -> str:
    """The command that mends a known failure of this host; empty when none is known. Blocks for one small read."""
    if "hybrid mode not supported" in said:
        mount = cgroups.layout().mounts.get("")
        held = (mount.point / "cgroup.controllers").read_text().split() if mount else []
        commands = [f"mkdir -p /sys/fs/cgroup/{c} && mount -t cgroup -o {c} none /sys/fs/cgroup/{c}" for c in held]
        return f"this runtime refuses a hybrid host whose cgroup v2 holds controllers; give them to v1: {' && '.join(commands)}"
    return ""
