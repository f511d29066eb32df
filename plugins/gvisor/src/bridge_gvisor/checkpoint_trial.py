"""The trial of runsc's checkpoints: a pod of two containers is written down, lives on, ends, and is made again of what was written.

None does it with the host's network stack; and only a restored pod shows that what was written is of use. A runsc of before May 2024
knows one container alone and breaks the sandbox that it writes down, which may hang: it is known by a flag that it lacks.
Source: gVisor runsc/boot/restore.go, runsc/cmd/checkpoint.go.
"""

from __future__ import annotations

from pathlib import Path

from anyio import to_thread

from bridge.errors import RuntimeFailed
from bridge_gvisor.runsc import Runsc

MEMBER = "member"
"""The second container's bundle, below the first's."""
_NO_OVERLAY = "--overlay2=none"
_YOUNG_FLAG = "-direct"


async def fault(runsc: Runsc, name: str, bundle: Path) -> str:
    """Why pods can't be checkpointed, in runsc's words; "" where a trial pod of ``bundle`` was. Leaves the pod to ``clear``."""
    if _NO_OVERLAY in runsc.settings.flags:
        return 'options.overlay is "none": files of the pod would change after its processes were written down'
    images, inner, timeout = bundle / "images", member(name), runsc.settings.timeouts.create
    beginning, restoring = ("--detach", "--bundle"), ("--detach", "--image-path", str(images), "--bundle")
    told = await runsc.run("help", "checkpoint", timeout=runsc.settings.timeouts.probe)
    if _YOUNG_FLAG not in (told.stdout + told.stderr).decode(errors="replace"):
        return f"this runsc is of before May 2024, which can't checkpoint pods that live on (its checkpoint has no {_YOUNG_FLAG})"
    try:
        await to_thread.run_sync(images.mkdir)
        await runsc.check("delete", "--force", name, timeout=timeout)
        await runsc.check("run", *beginning, str(bundle), name, timeout=timeout)
        await runsc.check("run", *beginning, str(bundle / MEMBER), inner, timeout=timeout)
        await runsc.checkpoint(name, images, timeout=timeout)
        await runsc.check("exec", inner, "/exit", timeout=timeout)
        for ident in (inner, name):
            await runsc.check("delete", "--force", ident, timeout=timeout)
        await runsc.check("restore", *restoring, str(bundle), name, timeout=timeout)
        await runsc.check("restore", *restoring, str(bundle / MEMBER), inner, timeout=timeout)
        await runsc.check("exec", inner, "/exit", timeout=timeout)
    except RuntimeFailed as exc:
        return f"a trial pod could not be checkpointed and restored: {exc.message}"
    return ""


async def clear(runsc: Runsc, name: str) -> None:
    """Remove the second container of this trial, or of one that was killed."""
    ident = member(name)
    if (runsc.settings.root / f"{ident}_sandbox:{name}.state").exists():
        await runsc.run("delete", "--force", ident, timeout=runsc.settings.timeouts.delete)


def member(name: str) -> str:
    """The second container's id."""
    return f"member-{name}"  # runsc knows ids by their beginnings, and takes none that is also the beginning of another
