"""What `[runtime.handlers.NAME.options]` may hold for a handler with `plugin = "runc"`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(gt=0, le=3600)]


class RuncOptions(BaseModel):
    """Every option has a default; the usual handler sets ``path`` alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = "runc"
    """The runtime's binary: an absolute path, or a name looked up in PATH. Why: runc is packaged everywhere."""
    root: Path | None = None
    """The runtime's own state directory. Why: unset, as one below the server's run directory vanishes at reboot, as it must."""
    cgroup_driver: Literal["systemd", "cgroupfs"] | None = None
    """Overrides `runtime.cgroup_driver` for this handler. Why: unset, as the kubelet knows one driver for all handlers."""
    global_args: tuple[str, ...] = ()
    """Further arguments before the verb, for example `["--debug"]`. Why: none are needed."""
    run_args: tuple[str, ...] = ()
    """Further arguments of `run`, for example `["--no-pivot"]` on a ramdisk. Why: none are needed."""
    env: dict[str, str] = {}
    """Variables added to the runtime's own environment (not the containers'). Why: none are needed."""
    start_timeout: Seconds | None = None
    """Seconds that `run` may take. Why: unset, the server's `runtime.start_timeout`."""
    exec_timeout: Seconds | None = None
    """Seconds that the start of an exec may take; not its running time. Why: unset, the server's."""
    delete_timeout: Seconds | None = None
    """Seconds that `delete` may take. Why: unset, the server's."""
