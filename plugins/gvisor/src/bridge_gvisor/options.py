"""What `[runtime.handlers.NAME.options]` may hold for a handler with `plugin = "gvisor"`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(gt=0, le=3600)]


class GvisorOptions(BaseModel):
    """Every option has a default; the usual handler sets none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = "runsc"
    """The binary: an absolute path, or a name looked up in PATH. Why: runsc is its name in every package."""
    root: Path | None = None
    """runsc's own state directory. Why: unset, as one below the server's run directory vanishes at reboot, as it must."""
    platform: Literal["systrap", "ptrace", "kvm"] | None = None
    """How the sandbox catches system calls. Why: unset, as runsc chooses (systrap since 2023, ptrace before)."""
    network: Literal["sandbox", "host", "none"] = "sandbox"
    """Whose network stack pods have: gVisor's own, the host's within the pod's network namespace, or loopback alone.
    Why: `sandbox`, as the host's stack is part of what a sandbox is to keep from the pod."""
    overlay: str | None = None
    """Where writes to root filesystems go, in the words of runsc's `--overlay2` (`none`, `root:self`, `all:memory`, `root:dir=/path`).
    Why: unset, as runsc chooses (in a file beside the root since 2023, which is quicker; before that on the root itself)."""
    rootless: bool = False
    """Whether runsc is told that it is not run by root. Why: off, as the server is."""
    oci_seccomp: bool = False
    """Whether seccomp profiles of pods are enforced inside the sandbox. Why: off as in runsc, whose own kernel is the protection: it
    costs time in each system call. Localhost profiles are refused without it. Commands of execs are run without a profile all the same."""
    debug_log: Path | None = None
    """A directory for runsc's debug logs. Why: unset, as they grow fast and slow everything down."""
    extra_args: tuple[str, ...] = ()
    """Further arguments before the verb, for example `["--directfs=false"]`. Why: none are needed."""
    env: dict[str, str] = {}
    """Variables added to runsc's own environment (not the containers'). Why: none are needed."""
    cgroup_driver: Literal["systemd", "cgroupfs"] | None = None
    """Overrides `runtime.cgroup_driver` for this handler; `systemd` only where that is the server's too, as pods' cgroups are slices then.
    Why: unset, as the kubelet knows one driver for all handlers."""
    stats_interval: Seconds = 0.4
    """Least seconds between two questions for one container's statistics; they grow where so many would take a core.
    Why: below the pace of the server's own questions (`stats.period`), and each is a process of runsc."""
    start_timeout: Seconds | None = None
    """Seconds that the creation and start of a sandbox or container may take. Why: unset, the server's `runtime.start_timeout`."""
    exec_timeout: Seconds | None = None
    """Seconds that the start of an exec may take; not its running time. Why: unset, the server's."""
    delete_timeout: Seconds | None = None
    """Seconds that `delete` may take. Why: unset, the server's."""
