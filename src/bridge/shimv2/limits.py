"""New limits for a container behind a shim: one Update, and the bundle's config.json kept true."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anyio import to_thread

from bridge.errors import HostError
from bridge.host.oci_documents import at_start, merged, write_json
from bridge.shimv2.task import ShimTask

_CONFIG, _FRESH = "config.json", "config.json.new"


async def update(task: ShimTask | None, bundle: Path, resources: Mapping[str, Any], *, timeout: float) -> None:
    """Set ``resources`` (OCI linux.resources, only what changes), without a ``task`` in the bundle alone. Raises RuntimeFailed."""
    await to_thread.run_sync(_prepare, bundle, resources)
    try:
        if task is not None:
            await task.update(resources, timeout=timeout)
        await to_thread.run_sync(os.replace, bundle / _FRESH, bundle / _CONFIG)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(bundle / _FRESH)


def _prepare(bundle: Path, resources: Mapping[str, Any]) -> None:
    try:
        config = json.loads((bundle / _CONFIG).read_text())
        linux = config.setdefault("linux", {})
        linux["resources"] = merged(linux.get("resources", {}), resources)
        write_json(bundle / _FRESH, at_start(config))
    except OSError as exc:
        raise HostError(f"bundle {bundle}: {exc.strerror}", errno=exc.errno) from exc
