"""A client of the streaming server, as kubelets are: exec, attach and port-forward over WebSocket (channel.k8s.io protocols).

The first byte of each message is its channel. Sources: KEP-4006 for v5 and the close signal, kubelet's remotecommand for the
channels and the final Status, kubelet's portforward (v4) for the two channels of each port.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import anyio

_STDIN, _STDOUT, _STDERR, _ERROR, _RESIZE, _CLOSE = 0, 1, 2, 3, 4, 255
_COMMAND_PROTOCOL = "v5.channel.k8s.io"
_FORWARD_PROTOCOL = "v4.channel.k8s.io"
_MAX_MESSAGE = 1 << 20


class _Channels:
    """What came on each channel, while ``_receive`` runs."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, patience: float) -> None:
        self._socket = socket
        self._patience = patience
        self._news = anyio.Event()
        self.ended = False
        self.got: dict[int, bytearray] = {}

    async def receive(self) -> None:
        """Until the server closes the connection."""
        async for message in self._socket:
            if message.type is aiohttp.WSMsgType.BINARY and message.data:
                self.got.setdefault(message.data[0], bytearray()).extend(message.data[1:])
            self._tell()
        self.ended = True
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()

    async def send(self, channel: int, data: bytes) -> None:
        try:
            await self._socket.send_bytes(bytes([channel]) + data)
        except (ConnectionError, RuntimeError) as exc:
            raise AssertionError(f"the server has closed the stream: {self.word or exc}") from exc

    async def until(self, channel: int, needle: bytes) -> bytes:
        """What came on ``channel`` once it has ``needle``. AssertionError when it ends, or the patience does, without."""
        with anyio.move_on_after(self._patience):
            while needle not in self.got.get(channel, b"") and not self.ended:
                await self._news.wait()
        found = bytes(self.got.get(channel, b""))
        assert needle in found, f"{needle!r} did not come through the stream; there was {found[-300:]!r}, error {self.word!r}"
        return found

    async def end(self) -> None:
        """Wait until the server closed the connection."""
        with anyio.move_on_after(self._patience):
            while not self.ended:
                await self._news.wait()
        assert self.ended, f"the stream did not end within {self._patience:g} s"

    @property
    def word(self) -> str:
        """The last word of the server: the error channel."""
        return bytes(self.got.get(_ERROR, b"")).decode(errors="replace")


class Command:
    """An exec or attach session. Made by ``command``."""

    def __init__(self, channels: _Channels) -> None:
        self._channels = channels

    @property
    def stdout(self) -> bytes:
        return bytes(self._channels.got.get(_STDOUT, b""))

    @property
    def stderr(self) -> bytes:
        return bytes(self._channels.got.get(_STDERR, b""))

    @property
    def word(self) -> str:
        """The server's last word as it is: a Status in JSON, or nothing."""
        return self._channels.word

    async def send(self, data: bytes) -> None:
        """Write to its stdin."""
        await self._channels.send(_STDIN, data)

    async def close_stdin(self) -> None:
        """The end of its stdin, and of nothing else."""
        await self._channels.send(_CLOSE, bytes([_STDIN]))

    async def resize(self, width: int, height: int) -> None:
        """Set the terminal's size, in columns and rows."""
        await self._channels.send(_RESIZE, json.dumps({"Width": width, "Height": height}).encode())

    async def until(self, needle: bytes) -> bytes:
        """Its stdout once it has ``needle``."""
        return await self._channels.until(_STDOUT, needle)

    async def exit_code(self) -> int:
        """Wait for the end; the command's exit code. AssertionError with the server's words when there is none."""
        await self._channels.end()
        status: dict[str, Any] = json.loads(self.word or "{}")
        if status.get("status") == "Success":
            return 0
        causes = status.get("details", {}).get("causes", [])
        codes = [int(each["message"]) for each in causes if each.get("reason") == "ExitCode"]
        assert codes, f"the stream ended without an exit code: {self.word!r}"
        return codes[0]


@asynccontextmanager
async def command(url: str, *, patience: float) -> AsyncIterator[Command]:
    """The session that ``url``, an answer to Exec or Attach, stands for; left with the block. ``patience``: seconds of every wait."""
    async with _connected(url, _COMMAND_PROTOCOL, patience) as channels:
        yield Command(channels)


class Forward:
    """A connection to one port of a pod. Made by ``forward``."""

    def __init__(self, channels: _Channels) -> None:
        self._channels = channels

    @property
    def refusal(self) -> str:
        """Why there is no connection; "" while there is one."""
        return bytes(self._channels.got.get(1, b"")[2:]).decode(errors="replace")

    async def send(self, data: bytes) -> None:
        await self._channels.send(0, data)

    async def until(self, needle: bytes) -> bytes:
        """What came once it has ``needle``; the port's number, which the protocol sends first, is cut off."""
        return (await self._channels.until(0, needle))[2:]

    async def refused(self, needle: str = "") -> str:
        """The server's words on why it can't connect. AssertionError when it does not say."""
        await self._channels.until(1, needle.encode() or b" ")
        return self.refusal


@asynccontextmanager
async def forward(url: str, *, patience: float) -> AsyncIterator[Forward]:
    """The session that ``url``, an answer to PortForward of one port, stands for."""
    async with _connected(url, _FORWARD_PROTOCOL, patience) as channels:
        yield Forward(channels)


@asynccontextmanager
async def _connected(url: str, protocol: str, patience: float) -> AsyncIterator[_Channels]:
    timeout = aiohttp.ClientTimeout(total=None, connect=patience)
    async with aiohttp.ClientSession(timeout=timeout) as client:
        async with client.ws_connect(url, protocols=[protocol], max_msg_size=_MAX_MESSAGE, compress=0) as socket:
            assert socket.protocol == protocol, f"the server does not speak {protocol}, but {socket.protocol}"
            channels = _Channels(socket, patience)
            failure: AssertionError | None = None
            async with anyio.create_task_group() as group:
                group.start_soon(channels.receive)
                try:
                    yield channels
                except AssertionError as exc:
                    failure = exc  # raised outside of the group, which would wrap it
                finally:
                    group.cancel_scope.cancel()
            if failure is not None:
                raise failure
