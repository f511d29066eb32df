"""Everything that a streaming connection can be for, served against core (bridge.streaming.sessions.Sessions)."""

from __future__ import annotations

from bridge.core.stream_requests import AttachRequest, ExecRequest, PortForwardRequest
from bridge.core.streams import StreamService
from bridge.streaming.channels import PortForwardStreams, RemoteCommand
from bridge.streaming.portforward import PortForwards
from bridge.streaming.remotecommand import RemoteCommands


class CoreSessions:
    """See the module docstring. ``idle_timeout`` and ``drain`` (how long output is awaited after an exit) in seconds."""

    def __init__(self, streams: StreamService, *, idle_timeout: float, drain: float) -> None:
        self._commands = RemoteCommands(streams, idle_timeout=idle_timeout, drain=drain)
        self._forwards = PortForwards(streams, idle_timeout=idle_timeout)

    async def exec(self, request: ExecRequest, command: RemoteCommand) -> None:
        """Run the command and connect it; returns once its exit code was written."""
        await self._commands.exec(request, command)

    async def attach(self, request: AttachRequest, command: RemoteCommand) -> None:
        """Connect to the container; returns when it has ended."""
        await self._commands.attach(request, command)

    async def port_forward(self, request: PortForwardRequest, connections: PortForwardStreams) -> None:
        """Connect each of ``connections``; returns when the client has left."""
        await self._forwards.port_forward(request, connections)
