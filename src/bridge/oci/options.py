"""The options that every handler on an OCI command line has, and what becomes of them: the beginning of a plugin's own model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from bridge.host import binaries
from bridge.host.cgroup_paths import CgroupDriver
from bridge.oci.cli import OciSettings
from bridge.oci.dialect import Dialect
from bridge.ports.host import HostContext

Seconds = Annotated[float, Field(gt=0, le=3600)]


class CliOptions(BaseModel):
    """A plugin's model inherits from this and gives ``path`` a default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    """The runtime's binary: an absolute path, or a name looked up in PATH."""
    root: Path | None = None
    """The runtime's own state directory. Why: unset, as one below the server's run directory vanishes at reboot, as it must."""
    cgroup_driver: Literal["systemd", "cgroupfs"] | None = None
    """Overrides `runtime.cgroup_driver` for this handler; `systemd` only where that is the server's too, as pods' cgroups are slices then.
    Why: unset, as the kubelet knows one driver for all handlers."""
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


def settings(name: str, options: CliOptions, context: HostContext, dialect: Dialect | None = None) -> OciSettings:
    """The SDK's settings for handler ``name``. Raises ConfigError when there is no such binary."""
    given = {
        key: value
        for key, value in (("start", options.start_timeout), ("exec", options.exec_timeout), ("delete", options.delete_timeout))
        if value is not None
    }
    search = binaries.search_path()
    return OciSettings(
        handler=name,
        path=binaries.find(options.path, search),
        root=options.root or context.state_root / name,
        systemd_cgroup=context.driver(options.cgroup_driver) is CgroupDriver.SYSTEMD,
        global_args=options.global_args,
        run_args=options.run_args,
        env={"PATH": search, **options.env},
        timeouts=replace(context.timeouts, **given),
        dialect=dialect or Dialect(),
    )
