"""The shim itself, after its start: the task service on the socket it was given, its log, and its events."""

from __future__ import annotations

import logging
import os
import socket
from functools import partial
from pathlib import Path
from typing import Final

import anyio
from betterproto2 import Message

from bridge._proto.containerd.services.events.ttrpc.v1 import ForwardRequest
from bridge._proto.containerd.types import Empty, Envelope
from bridge.aio import Supervisor
from bridge.errors import BridgeError
from bridge.host import syscalls
from bridge.shimv2.client import TtrpcClient
from bridge.shimv2.encoding import packed, timestamp
from bridge.shimv2.events import SERVICE as EVENTS
from bridge.shimv2.server import serve_listener
from bridge.testing.fake_kata.service import TaskService

LISTENER: Final = 3
"""Descriptor of the socket that listens, from the starter."""
_EVENT_SECONDS: Final = 5.0
_QUEUE: Final = 128
_RETRIES: Final = 5
_TOPICS: Final = {
    "TaskCreate": "/tasks/create",
    "TaskStart": "/tasks/start",
    "TaskExit": "/tasks/exit",
    "TaskOom": "/tasks/oom",
    "TaskDelete": "/tasks/delete",
    "TaskExecAdded": "/tasks/exec-added",
    "TaskExecStarted": "/tasks/exec-started",
}
_NEWNS, _SLAVE, _SHARED, _REC = 0x00020000, 1 << 19, 1 << 20, 1 << 14

_logger = logging.getLogger("bridge.fake_kata")


def main(namespace: str) -> None:
    """Serve until Shutdown. The log is a fifo in the bundle that must have a reader, or this waits for one."""
    logging.basicConfig(
        filename="log", filemode="w", level="INFO", format='time="%(asctime)s" level=%(levelname)s msg="%(message)s" source=fake-kata-shim'
    )
    with open("log", "wb", buffering=0) as log:
        os.dup2(log.fileno(), 2)
    syscalls.unshare(_NEWNS)
    syscalls.mount("", "/", flags=_REC | _SLAVE)
    syscalls.mount("", "/", flags=_REC | _SHARED)
    syscalls.set_child_subreaper()
    anyio.run(_serve, namespace)
    Path(Path("address").read_text().removeprefix("unix://")).unlink(missing_ok=True)
    os._exit(0)  # threads that still copy would hold it up


async def _serve(namespace: str) -> None:
    ended = anyio.Event()
    send, receive = anyio.create_memory_object_stream[ForwardRequest](_QUEUE)

    def publish(event: Message) -> None:
        send.send_nowait(_request(event, namespace))

    async def forward() -> None:
        async for request in receive:
            if not await _forward(request):
                tasks.spawn("forward an event later", partial(_retry, request))

    async with Supervisor("fake shim") as tasks:
        tasks.spawn("forward events", forward)
        service = TaskService(os.getpid(), tasks, publish, ended.set)
        async with serve_listener(socket.socket(fileno=LISTENER), service.services()):
            _logger.info("serving")
            await ended.wait()


def _request(event: Message, namespace: str) -> ForwardRequest:
    name = type(event).__name__
    _logger.info("post event %s", name)
    what = packed(f"containerd.events.{'TaskOOM' if name == 'TaskOom' else name}", event)
    return ForwardRequest(envelope=Envelope(timestamp=timestamp(), namespace=namespace, topic=_TOPICS[name], event=what))


async def _forward(request: ForwardRequest) -> bool:
    """Bring an event to whoever started the shim; whether that succeeded, as it does when nobody wants any."""
    address = os.environ.get("TTRPC_ADDRESS", "")
    try:
        if address:
            async with TtrpcClient.connect(Path(address)) as client:
                await client.call(EVENTS, "Forward", request, Empty, timeout=_EVENT_SECONDS)
    except BridgeError as exc:
        _logger.error("post event: %s", exc)
        return False
    return True


async def _retry(request: ForwardRequest) -> None:
    """As containerd's publisher, which Kata uses: after 1, 2, 3, 4 and 5 seconds, then the event is dropped."""
    for seconds in range(1, _RETRIES + 1):
        await anyio.sleep(seconds)
        if await _forward(request):
            return
