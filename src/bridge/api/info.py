"""The ``info`` maps of verbose answers: JSON for people and for crictl inspect. Not a stable API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from bridge.core import records
from bridge.core.entities import Container, Sandbox
from bridge.core.model import Resources
from bridge.core.services import Services
from bridge.host import files
from bridge.images.manifest import load
from bridge.ports.images import Image

_LARGEST_SPEC = 16 << 20


def of_sandbox(sandbox: Sandbox, core: Services) -> dict[str, str]:
    """pid, namespaces, cgroup, handler, the CNI attachment and the trace."""
    spans = [
        {
            "name": span.name,
            "start": span.start,
            "duration": span.duration,
            "depth": span.depth,
            "failed": span.failed,
            "traceId": span.trace_id,
        }
        for span in core.traces.of(sandbox.id)
    ]
    return _info(
        {
            "pid": sandbox.pid,
            "state": str(sandbox.state),
            "runtimeHandler": sandbox.handler,
            "namespaces": dict(sandbox.namespaces),
            "cgroupParent": sandbox.cgroup_parent,
            "network": sandbox.attachment,
            "overhead": _limits(sandbox.overhead),
            "resources": _limits(sandbox.resources),
            "config": json.loads(records.dumps(sandbox.config)),
            "trace": spans,
        }
    )


async def of_container(container: Container, core: Services) -> dict[str, str]:
    """pid, sandbox, handler, the OCI spec as the runtime got it."""
    sandbox = core.store.sandboxes.get(container.sandbox_id)
    bundle = core.containers.bundle(container)
    text = await files.read_text(bundle / "config.json", limit=_LARGEST_SPEC)
    return _info(
        {
            "pid": container.pid,
            "sandboxID": container.sandbox_id,
            "state": str(container.state),
            "runtimeHandler": sandbox.handler if sandbox else "",
            "bundle": str(bundle),
            "stopSignal": container.stop_signal,
            "config": json.loads(records.dumps(container.config)),
            "runtimeSpec": json.loads(text) if text else None,
        }
    )


def of_image(image: Image, document: bytes) -> dict[str, str]:
    """The layers, and the whole config as its maker wrote it, where ``crictl inspecti`` and its readers look for it."""
    return _info(
        {
            "chainID": image.chain_ids[-1] if image.chain_ids else "",
            "chainIDs": list(image.chain_ids),
            "imageSpec": load(document, "image config") if document else {},
        }
    )


def _limits(resources: Resources | None) -> Any:
    return None if resources is None else json.loads(records.dumps(resources))


def _info(value: Mapping[str, Any]) -> dict[str, str]:
    return {"info": json.dumps(value, separators=(",", ":"))}
