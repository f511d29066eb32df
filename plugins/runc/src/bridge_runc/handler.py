"""Turns the options of one handler into the settings of the OCI SDK, and opens it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from dataclasses import replace

from bridge.host import binaries
from bridge.host.cgroup_paths import CgroupDriver
from bridge.oci.backend import open_backend
from bridge.oci.cli import OciSettings
from bridge.ports.host import HostContext
from bridge.ports.runtime import RuntimeBackend
from bridge_runc.options import RuncOptions


def settings(name: str, options: RuncOptions, context: HostContext) -> OciSettings:
    """The SDK's settings for handler ``name``. Raises ConfigError."""
    given = {
        key: value
        for key, value in (("start", options.start_timeout), ("exec", options.exec_timeout), ("delete", options.delete_timeout))
        if value is not None
    }
    search = binaries.search_path()
    driver = CgroupDriver(options.cgroup_driver) if options.cgroup_driver else context.cgroup_driver
    return OciSettings(
        handler=name,
        path=binaries.find(options.path, search),
        root=options.root or context.state_root / name,
        systemd_cgroup=driver is CgroupDriver.SYSTEMD,
        global_args=options.global_args,
        run_args=options.run_args,
        env={"PATH": search, **options.env},
        timeouts=replace(context.timeouts, **given),
    )


def open_handler(name: str, options: RuncOptions, context: HostContext) -> AbstractAsyncContextManager[RuntimeBackend]:
    """Open handler ``name``."""
    return open_backend(settings(name, options, context), context)
