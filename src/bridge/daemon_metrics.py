"""The endpoint for Prometheus, if the configuration asks for one: nothing of it is imported otherwise."""

from __future__ import annotations

import importlib.util
import ipaddress
import platform
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager

from anyio.to_thread import run_sync

from bridge import __version__, log
from bridge.aio import Supervisor
from bridge.api import sockets
from bridge.api.server import GrpcServer
from bridge.config import Config, Metrics
from bridge.core.services import Services
from bridge.errors import ConfigError, HostError
from bridge.images.store import ImageStore
from bridge.monitor.link import MonitorLink
from bridge.streaming.server import StreamServer
from bridge.streaming.tls import Certificate

_logger = log.get("metrics")
_BACKLOG = 16


@asynccontextmanager
async def told(
    config: Config, core: Services, images: ImageStore, link: MonitorLink, streams: StreamServer, server: GrpcServer
) -> AsyncIterator[None]:
    """Count, and answer who asks, while the block runs. Raises ConfigError, HostError."""
    wanted = config.metrics
    if wanted.socket is None and not wanted.address:
        yield
        return
    if importlib.util.find_spec("prometheus_client") is None:
        raise ConfigError("metrics.socket, metrics.address: need the package prometheus-client: install cri-bridge[metrics]")
    from bridge.metrics.endpoint import Endpoint
    from bridge.metrics.exposition import Exposition
    from bridge.metrics.readings import Reading, Sources

    def others() -> Iterator[Reading]:
        yield "cri_bridge_monitor_up", (), not link.fault
        yield from (("cri_bridge_monitor_losses_total", (kind,), count) for kind, count in link.losses.items())
        yield "cri_bridge_rpcs_in_flight", (), server.in_flight
        yield "cri_bridge_stream_sessions", (), streams.sessions
        yield "cri_bridge_stream_connections_waiting", (), streams.waiting
        yield "cri_bridge_image_pulls_running", (), len(images.progress())

    exposition = Exposition(core, Sources(core, others, __version__, platform.python_version()))
    counted = exposition.instruments
    with ExitStack() as taken:
        endpoints = [
            Endpoint(listener, exposition.render, certificate) for listener, certificate in await run_sync(_listeners, wanted, taken)
        ]
        async with Supervisor("metrics") as supervisor:
            for endpoint in endpoints:
                supervisor.spawn("metrics endpoint", endpoint.serve)
            supervisor.spawn("metrics exits", counted.count_exits)
            supervisor.spawn("metrics lag", counted.measure_lag)
            server.observer, core.traces.observer = counted, counted.span
            images.watch_pulls(counted)
            _logger.info("serving metrics on %s", " and ".join(filter(None, [str(wanted.socket or ""), wanted.address])))
            yield


def _listeners(wanted: Metrics, taken: ExitStack) -> list[tuple[socket.socket, Certificate | None]]:
    """Blocks: files are read."""
    found: list[tuple[socket.socket, Certificate | None]] = []
    if wanted.socket is not None:
        bound = sockets.bind(wanted.socket, mode=wanted.socket_mode)
        taken.callback(bound.close)
        bound.socket.setblocking(False)
        bound.socket.listen(_BACKLOG)
        found.append((bound.socket, None))
    if wanted.address:
        certificate = None
        if wanted.tls_certificate is not None:
            key = wanted.tls_key or wanted.tls_certificate
            certificate = Certificate(wanted.tls_certificate, key, wanted.tls_client_authorities, section="metrics")
            certificate.context()
        found.append((taken.enter_context(_listen(wanted)), certificate))
    return found


def _listen(wanted: Metrics) -> socket.socket:
    host, _, port = wanted.address.rpartition(":")
    ip = ipaddress.ip_address(host.strip("[]"))
    if not ip.is_loopback and wanted.tls_certificate is None:
        _logger.warning("metrics go over the network as they are: set metrics.tls_certificate")
    listener = socket.socket(socket.AF_INET6 if ip.version == 6 else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((str(ip), int(port)))
        listener.listen(_BACKLOG)
    except OSError as exc:
        listener.close()
        raise HostError(f"metrics.address: can't listen on {wanted.address}: {exc.strerror}", errno=exc.errno) from exc
    return listener
