"""The trial of checkpoints: a throw-away container that waits is written down, and restored.

``criu check`` says what the kernel can, not whether this runtime finds its library of CRIU (crun loads it when it is needed), nor whether
the cgroups of this host can be frozen.
"""

from __future__ import annotations

import platform
from pathlib import Path

import anyio
from anyio import to_thread

from bridge.errors import BridgeError
from bridge.host.trial_bundle import make_bundle, program, trial_spec
from bridge.oci import checkpoints, trial
from bridge.oci.cli import OciCli
from bridge.oci.dialect import Scope, flag, switch
from bridge.ports.runtime import Feature, Support


async def tried(cli: OciCli, found: Feature, bundle: Path, *, seccomp: bool, timeout: float) -> Feature:
    """``found``, if a container could be checkpointed and restored in ``bundle``, else with why not. Leaves nothing behind."""
    waits = program("wait", platform.machine())
    if waits is None or not cli.dialect.trial:
        return Feature(found.support, f"{found.detail}; not tried")
    name, path = trial.names(cli)
    await trial.clear(bundle)
    try:
        spec = cli.dialect.noted(trial_spec(path, seccomp=seccomp), Scope.TRIAL)
        await to_thread.run_sync(make_bundle, bundle, waits, dict(spec))
        await _use(cli, name, bundle, timeout)
    except BridgeError as exc:
        said = await to_thread.run_sync(
            lambda: [*checkpoints.errors_of(bundle / "dump.log"), *checkpoints.errors_of(bundle / "restore.log")]
        )
        return Feature(Support.UNSUPPORTED, "; ".join(("a trial container could not be checkpointed and restored", exc.message, *said)))
    finally:
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + timeout):
            await trial.tidy(cli, name)
            await trial.clear(bundle)
    return Feature(found.support, f"{found.detail}; a trial container was checkpointed and restored")


async def _use(cli: OciCli, name: str, bundle: Path, timeout: float) -> None:
    words, images = cli.dialect.flags, bundle / "images"
    await to_thread.run_sync(images.mkdir)
    if await cli.knows(name):  # of a server that was killed in its trial
        await cli.delete(name, force=True)
    start = [*switch(words.detach), *flag(words.bundle, bundle), *flag(words.pid_file, bundle / "pid")]
    where = [*flag(words.images, images), *flag(words.work, bundle)]
    await cli.check("run", *start, name, timeout=timeout)
    await cli.check("checkpoint", *where, *switch(words.running), name, timeout=timeout)
    await cli.delete(name, force=True)
    await cli.check("restore", *start, *where, name, timeout=timeout)
    await cli.delete(name, force=True)
