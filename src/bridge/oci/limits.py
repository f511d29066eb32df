"""New limits for a container of a runc-compatible runtime: one ``update``, and the bundle's config.json kept true."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anyio import to_thread

from bridge.errors import HostError
from bridge.host import cgroup_limits, cgroups
from bridge.host.oci_documents import at_start, lifts_quota, merged, without_quota, write_json
from bridge.oci.cli import OciCli
from bridge.oci.dialect import flag

_CONFIG, _FRESH, _REQUEST = "config.json", "config.json.new", "resources.json"


async def update(cli: OciCli, bundle: Path, ident: str, cgroup: str | None, resources: Mapping[str, Any], *, started: bool) -> None:
    """Set ``resources`` (OCI linux.resources, only what changes). Raises RuntimeFailed with the runtime's words, HostError."""
    told = resources
    if started and cgroup is not None and lifts_quota(resources) and not cli.settings.systemd_cgroup and not cgroups.is_v2():
        # crun before 1.9 writes "none" on v1 as a number that the kernel refuses.
        await to_thread.run_sync(cgroup_limits.lift_quota, cgroup)
        told = without_quota(resources)
    await to_thread.run_sync(_prepare, bundle, resources, told)
    try:
        if started and told:
            await cli.check("update", *flag(cli.dialect.flags.resources, bundle / _REQUEST), ident, timeout=cli.settings.timeouts.exec)
        await to_thread.run_sync(os.replace, bundle / _FRESH, bundle / _CONFIG)
    finally:
        for name in (_REQUEST, _FRESH):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(bundle / name)


def _prepare(bundle: Path, resources: Mapping[str, Any], told: Mapping[str, Any]) -> None:
    """The request's file, and the config that will take the place of the old one."""
    try:
        config = json.loads((bundle / _CONFIG).read_text())
        linux = config.setdefault("linux", {})
        linux["resources"] = merged(linux.get("resources", {}), resources)
        write_json(bundle / _FRESH, at_start(config))
        write_json(bundle / _REQUEST, told)
    except OSError as exc:
        raise HostError(f"bundle {bundle}: {exc.strerror}", errno=exc.errno) from exc
