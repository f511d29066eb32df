"""What the HTTP server hands a connection to once its channels are open."""

from __future__ import annotations

from typing import Protocol

from bridge.core.stream_requests import AttachRequest, ExecRequest, PortForwardRequest
from bridge.streaming.channels import PortForwardStreams, RemoteCommand


class Sessions(Protocol):
    """Serves one session, from open channels to the last word on the error channel. Cancelled when the connection is lost.

    Each returns once everything was written; the server then closes the connection. What went wrong is told to the client on
    its error channel, not raised; what is raised all the same is logged as a defect.
    """

    async def exec(self, request: ExecRequest, command: RemoteCommand) -> None:
        """Run the command and connect it; returns once its exit code was written."""
        ...

    async def attach(self, request: AttachRequest, command: RemoteCommand) -> None:
        """Connect to the container; returns when it has ended or the client has left."""
        ...

    async def port_forward(self, request: PortForwardRequest, connections: PortForwardStreams) -> None:
        """Connect each of ``connections``, at the same time; returns when the client has left, or all it can have are served."""
        ...
