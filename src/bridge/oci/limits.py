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
from bridge.oci.cli import OciCli
from bridge.oci.runtime import write_json

_CONFIG, _FRESH, _REQUEST = "config.json", "config.json.new", "resources.json"
_LISTS = {"hugepageLimits": "pageSize"}


async def update(cli: OciCli, bundle: Path, ident: str, resources: Mapping[str, Any], *, started: bool) -> None:
    """Set ``resources`` (OCI linux.resources, only what changes). Raises RuntimeFailed with the runtime's words, HostError."""
    await to_thread.run_sync(_prepare, bundle, resources)
    try:
        if started:
            await cli.check("update", "--resources", str(bundle / _REQUEST), ident, timeout=cli.settings.timeouts.exec)
        await to_thread.run_sync(os.replace, bundle / _FRESH, bundle / _CONFIG)
    finally:
        for name in (_REQUEST, _FRESH):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(bundle / name)


def _prepare(bundle: Path, resources: Mapping[str, Any]) -> None:
    """The request's file, and the config that will take the place of the old one."""
    try:
        config = json.loads((bundle / _CONFIG).read_text())
        linux = config.setdefault("linux", {})
        linux["resources"] = merged(linux.get("resources", {}), resources)
        write_json(bundle / _FRESH, config)
        write_json(bundle / _REQUEST, resources)
    except OSError as exc:
        raise HostError(f"bundle {bundle}: {exc.strerror}", errno=exc.errno) from exc


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """``old`` limits with the ``new`` ones in their places."""
    result = dict(old)
    for section, value in new.items():
        if section in _LISTS:
            key = _LISTS[section]
            result[section] = list({each[key]: each for each in (*old.get(section, ()), *value)}.values())
        else:
            result[section] = {**old.get(section, {}), **value}
    return result
