"""Turns the options of one handler into the settings of its runsc, and opens it."""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

from bridge.errors import ConfigError
from bridge.host.cgroup_paths import CgroupDriver
from bridge.ports.host import HostContext
from bridge.ports.runtime import RuntimeBackend
from bridge_gvisor.backend import open_backend
from bridge_gvisor.options import GvisorOptions
from bridge_gvisor.runsc import RunscSettings

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def find_binary(name: str, search: str) -> Path:
    """The absolute path of ``name``. Raises ConfigError saying where it was sought."""
    found = shutil.which(name, path=search)
    if found is None:
        where = "" if "/" in name else f" in {search}"
        raise ConfigError(f"options.path: there is no executable {name!r}{where}; install runsc or set the path")
    if not os.path.isabs(found):
        raise ConfigError(f"options.path: {name!r} must be an absolute path or a bare name")
    return Path(found)


def flags(options: GvisorOptions) -> tuple[str, ...]:
    """runsc's flags before each verb, but for the network, the root and the log."""
    return (
        *([f"--platform={options.platform}"] if options.platform else []),
        *([f"--overlay2={options.overlay}"] if options.overlay is not None else []),
        *(["--rootless"] if options.rootless else []),
        *(["--oci-seccomp"] if options.oci_seccomp else []),
        *(["--debug", f"--debug-log={options.debug_log}/"] if options.debug_log else []),
        *options.extra_args,
    )


def settings(name: str, options: GvisorOptions, context: HostContext) -> RunscSettings:
    """The settings for handler ``name``. Raises ConfigError."""
    start, run, delete = options.start_timeout, options.exec_timeout, options.delete_timeout
    given = {key: value for key, value in (("create", start), ("start", start), ("exec", run), ("delete", delete)) if value is not None}
    search = os.environ.get("PATH", _PATH)
    return RunscSettings(
        handler=name,
        path=find_binary(options.path, search),
        root=options.root or context.state_root / name,
        network=options.network,
        flags=flags(options),
        seccomp=options.oci_seccomp,
        systemd_cgroup=context.driver(options.cgroup_driver) is CgroupDriver.SYSTEMD,
        stats_interval=options.stats_interval,
        env={"PATH": search, **options.env},
        timeouts=replace(context.timeouts, **given),
    )


def open_handler(name: str, options: GvisorOptions, context: HostContext) -> AbstractAsyncContextManager[RuntimeBackend]:
    """Open handler ``name``."""
    return open_backend(settings(name, options, context), context)
