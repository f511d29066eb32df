"""A container's stdio as its config asks for it, and where its log is. Source: CRI v1 ContainerConfig.

``stdin_once`` without ``stdin`` has nothing to close, and is no error: a pod may ask for it.
"""

from __future__ import annotations

import os
from pathlib import Path

from bridge.core import pod_namespaces
from bridge.core.entities import Container, Sandbox
from bridge.core.model import ContainerConfig
from bridge.errors import InvalidRequest
from bridge.ports.runtime import ContainerIO


def log_path(sandbox: Sandbox, config: ContainerConfig) -> str:
    """The container's log: its log_path below the pod's log_directory; "" when either is unset. Raises InvalidRequest."""
    top, name = sandbox.config.log_directory, config.log_path
    if not top or not name:
        return ""
    if "\0" in name:
        raise InvalidRequest("holds a NUL byte", field="config.log_path")
    directory = Path(os.path.normpath(top))
    path = Path(os.path.normpath(directory / name))
    if directory not in path.parents:
        raise InvalidRequest(f"{name!r} leaves the pod's log directory", field="config.log_path")
    return str(path)


def container_io(container: Container, sandbox: Sandbox) -> ContainerIO:
    """Stdio as the config asks for it."""
    config = container.config
    path, owner = Path(container.log_path) if container.log_path else None, pod_namespaces.root_ids(sandbox.config)
    return ContainerIO(terminal=config.tty, stdin=config.stdin, stdin_once=config.stdin_once, log_path=path, owner=owner)
