"""The RPCs that answer with a URL: Exec, Attach, PortForward. What can be refused is refused here, before the client connects."""

from __future__ import annotations

from typing import Protocol

from bridge._proto.runtime import v1
from bridge.core.services import Services
from bridge.core.stream_requests import AttachRequest, ExecRequest, PortForwardRequest, Stdio, StreamRequest


class Urls(Protocol):
    """Where clients come for their streams."""

    def url(self, request: StreamRequest) -> str:
        """A URL that is good once, soon, for ``request``. Raises LimitExceeded while too many wait."""
        ...


class StreamingRpcs(v1.RuntimeServiceBase):
    """Exec, Attach, PortForward."""

    def __init__(self, core: Services, urls: Urls) -> None:
        self._core = core
        self._urls = urls

    async def exec(self, message: v1.ExecRequest) -> v1.ExecResponse:
        """A URL to run a command at."""
        request = await self._core.streams.check_exec(ExecRequest(message.container_id, tuple(message.cmd), _stdio(message)))
        return v1.ExecResponse(url=self._urls.url(request))

    async def attach(self, message: v1.AttachRequest) -> v1.AttachResponse:
        """A URL to a container's own process."""
        request = await self._core.streams.check_attach(AttachRequest(message.container_id, _stdio(message)))
        return v1.AttachResponse(url=self._urls.url(request))

    async def port_forward(self, message: v1.PortForwardRequest) -> v1.PortForwardResponse:
        """A URL to a pod's ports."""
        request = await self._core.streams.check_port_forward(PortForwardRequest(message.pod_sandbox_id, tuple(message.port)))
        return v1.PortForwardResponse(url=self._urls.url(request))


def _stdio(message: v1.ExecRequest | v1.AttachRequest) -> Stdio:
    return Stdio(message.stdin, message.stdout, message.stderr, message.tty)
