"""One connection after its TCP and TLS handshakes: its request, and the session that follows the upgrade.

Imported with the first connection: a node where nobody execs needs none of it.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio

from bridge import log
from bridge.core.stream_requests import AttachRequest, ExecRequest, PortForwardRequest, Stdio, StreamRequest
from bridge.streaming.channels import RemoteCommand
from bridge.streaming.refusals import Refused
from bridge.streaming.sessions import Sessions
from bridge.streaming.socket_wire import SocketWire
from bridge.streaming.spdy_session import FORWARD_HIGH, spdy_session
from bridge.streaming.spdy_streams import ForwardedStreams, remote_command
from bridge.streaming.transport import Wire
from bridge.streaming.upgrade import TUNNEL, Reception, Upgrade
from bridge.streaming.websocket import TunnelWire, WebSocket
from bridge.streaming.websocket_session import COMMAND_CHANNELS, command_over, ports_over, readable, websocket_session

_STRUCTURED = "v4.channel.k8s.io"
_RESIZABLE = (_STRUCTURED, "v3.channel.k8s.io")
_logger = log.get("streaming")


async def upgraded(wire: SocketWire, redeem: Callable[[str, str], StreamRequest | None]) -> Upgrade | None:
    """Read the request and answer it. None when it was refused, or the client left."""
    reception = Reception(redeem)
    try:
        upgrade = None
        while upgrade is None:
            data = await wire.receive()
            if not data:
                return None
            upgrade = reception.receive(data)
        await wire.send(upgrade.answer)
    except Refused as exc:
        _logger.info("a stream was refused with %d: %s", exc.status, exc.message)
        await wire.send(reception.refusal(exc))
        return None
    wire.put_back(upgrade.early)
    return upgrade


async def hold(wire: Wire, upgrade: Upgrade, sessions: Sessions) -> None:
    """Serve the session on an upgraded connection, to its end."""
    request = upgrade.request
    if isinstance(request, PortForwardRequest):
        await _forward(wire, upgrade, request, sessions)
    elif upgrade.websocket:
        async with websocket_session(wire, upgrade.protocol, readable(request.stdio), COMMAND_CHANNELS) as channels:
            await _serve(request, await command_over(channels, upgrade.protocol, request.stdio), sessions)
    else:
        async with spdy_session(wire) as session:
            wanted = _wanted(request.stdio, upgrade.protocol)
            command = await remote_command(session, wanted, structured=upgrade.protocol == _STRUCTURED)
            await _serve(request, command, sessions)


async def _serve(request: ExecRequest | AttachRequest, command: RemoteCommand, sessions: Sessions) -> None:
    if isinstance(request, ExecRequest):
        await sessions.exec(request, command)
    else:
        await sessions.attach(request, command)
    for channel in (command.stdout, command.stderr, command.stdin, command.resize, command.error):
        if channel is not None:
            await channel.close()


async def _forward(wire: Wire, upgrade: Upgrade, request: PortForwardRequest, sessions: Sessions) -> None:
    if not upgrade.websocket:
        async with spdy_session(wire, stream_high=FORWARD_HIGH) as session:
            await sessions.port_forward(request, ForwardedStreams(session))
    elif upgrade.protocol == TUNNEL:
        tunnel = TunnelWire(WebSocket(wire))
        try:
            async with spdy_session(tunnel, stream_high=FORWARD_HIGH) as session:
                await sessions.port_forward(request, ForwardedStreams(session))
        finally:
            with anyio.CancelScope(shield=True):  # it has a deadline of its own
                await tunnel.close()
    else:
        ports = request.ports
        async with websocket_session(wire, upgrade.protocol, range(0, 2 * len(ports), 2), 2 * len(ports)) as channels:
            await sessions.port_forward(request, await ports_over(channels, ports))


def _wanted(stdio: Stdio, protocol: str) -> frozenset[str]:
    """The streams that a client opens for this request: it follows the same rules."""
    asked = {
        "stdin": stdio.stdin,
        "stdout": stdio.stdout,
        "stderr": stdio.stderr and not stdio.tty,
        "resize": stdio.tty and protocol in _RESIZABLE,
    }
    return frozenset(name for name, is_asked in asked.items() if is_asked)
