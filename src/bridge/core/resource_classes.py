"""Classes that a pod's annotations choose for its containers: block I/O (weights, throttles) and Intel RDT (cache, bandwidth). Pure.

The names are those that containerd and CRI-O read: ``KIND.resources.beta.kubernetes.io/container.NAME`` for one container,
``…/pod`` for all, and ``io.kubernetes.cri.KIND-class`` on the container itself, which wins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bridge import log
from bridge.core.spec_inputs import ContainerInputs, SpecSettings
from bridge.errors import InvalidRequest, Unsupported
from bridge.host.facts import HostFacts

_logger = log.get("core.resource_classes")
_RDT_RESERVED = ("info", "mon_data", "mon_groups", ".", "..")


def block_io(inputs: ContainerInputs, settings: SpecSettings) -> Mapping[str, Any] | None:
    """The OCI ``blockIO`` of the container's class; None without one. Raises Unsupported naming the annotation."""
    name, annotation = _chosen(inputs, "blockio")
    if not name:
        return None
    found = settings.blockio_classes.get(name)
    if found is None:
        known = ", ".join(sorted(settings.blockio_classes)) or "none: runtime.blockio_config_file defines them"
        _missing(f"{annotation}: there is no block I/O class {name!r} (there are: {known})", settings)
    return found


def rdt(inputs: ContainerInputs, facts: HostFacts, settings: SpecSettings) -> Mapping[str, Any] | None:
    """The OCI ``intelRdt`` of the container's class; None without one. The runtime says whether the class exists.

    Raises InvalidRequest or Unsupported naming the annotation.
    """
    name, annotation = _chosen(inputs, "rdt")
    if not name:
        return None
    if name in _RDT_RESERVED or "/" in name or not name.isprintable():
        raise InvalidRequest(f"{name!r} is no name of an RDT class", field=annotation)
    if not facts.resctrl:
        _missing(f"{annotation}: this host has no RDT (resctrl is not mounted on /sys/fs/resctrl)", settings)
        return None
    return {"closID": name}


def _chosen(inputs: ContainerInputs, kind: str) -> tuple[str, str]:
    """The class, and where it was named; "" for none."""
    own = f"io.kubernetes.cri.{kind}-class"
    if own in inputs.config.annotations:
        return inputs.config.annotations[own], f"config.annotations[{own}]"
    pod = inputs.sandbox.config.annotations
    for key in (f"{kind}.resources.beta.kubernetes.io/container.{inputs.config.metadata.name}", f"{kind}.resources.beta.kubernetes.io/pod"):
        if key in pod:
            return pod[key], f"sandbox_config.annotations[{key}]"
    return "", ""


def _missing(why: str, settings: SpecSettings) -> None:
    if settings.refuse_missing_classes:
        raise Unsupported(why)
    _logger.warning("%s: ignored", why)
