"""What Exec, Attach and PortForward ask for: kept with a one-time token until the client comes to the URL that it was given."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stdio:
    """Which streams the client wants. With a ``tty`` there is no stderr of its own."""

    stdin: bool = False
    stdout: bool = False
    stderr: bool = False
    tty: bool = False


@dataclass(frozen=True, slots=True)
class ExecRequest:
    """Run ``argv`` in a container and connect it."""

    container_id: str
    argv: tuple[str, ...]
    stdio: Stdio


@dataclass(frozen=True, slots=True)
class AttachRequest:
    """Connect to the container's own process."""

    container_id: str
    stdio: Stdio


@dataclass(frozen=True, slots=True)
class PortForwardRequest:
    """Connect to ports in the pod's network. ``ports`` only for clients that don't name one for each connection (WebSocket v4)."""

    sandbox_id: str
    ports: tuple[int, ...] = ()


StreamRequest = ExecRequest | AttachRequest | PortForwardRequest
