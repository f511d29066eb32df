"""What crictl and kubectl really send, and what they were answered, cut at every place: recorded/README.md says how it was come by."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping

from bridge.core.stream_requests import ExecRequest, PortForwardRequest, Stdio, StreamRequest
from bridge.streaming.channel_messages import ChannelCodec
from bridge.streaming.spdy import SpdyMachine
from bridge.streaming.spdy_events import DataReceived, StreamOpened
from bridge.streaming.upgrade import TUNNEL, Reception, Upgrade

RECORDED = Path(__file__).parent / "recorded"
COMMANDS = ["crictl-exec-spdy", "crictl-exec-websocket", "kubectl-exec-spdy", "kubectl-exec-websocket"]
FORWARDS = ["crictl-port-forward-spdy", "crictl-port-forward-websocket", "kubectl-port-forward-spdy", "kubectl-port-forward-websocket"]
TTY = "crictl-exec-tty-spdy"
NUMBERED = {0: "stdin", 1: "stdout", 2: "stderr", 3: "error", 4: "resize"}


@dataclass
class Heard:
    """What one side said: bytes by stream or channel, those that it closed, and the headers of those that it opened."""

    data: dict[str, bytes] = field(default_factory=lambda: defaultdict(bytes))
    ended: set[str] = field(default_factory=set)
    opened: dict[str, Mapping[str, str]] = field(default_factory=dict)
    closed: bool = False


@dataclass
class Listener:
    """Decodes one side of a session, as it comes."""

    websocket: bool
    protocol: str
    client: bool
    names: dict[int, str] = field(default_factory=dict)
    heard: Heard = field(default_factory=Heard)

    def __post_init__(self) -> None:
        self.spdy = SpdyMachine(client=self.client)
        self.frames = Connection(ConnectionType.CLIENT if self.client else ConnectionType.SERVER)
        self.codec = ChannelCodec(close_signal=self.protocol.startswith("v5"))

    def feed(self, data: bytes) -> None:
        if not self.websocket:
            self._spdy(data)
            return
        self.frames.receive_data(data)
        for event in self.frames.events():
            if isinstance(event, CloseConnection):
                self.heard.closed = True
                assert event.code in (1000, 1005)
            elif isinstance(event, BytesMessage):
                if self.protocol == TUNNEL:
                    self._spdy(bytes(event.data))
                elif (arrived := self.codec.decode(bytes(event.data), last=event.message_finished)) is not None:
                    self.heard.data[NUMBERED[arrived.channel]] += arrived.data
                    if arrived.end:
                        self.heard.ended.add(NUMBERED[arrived.channel])
            else:
                assert isinstance(event, Ping)

    def _spdy(self, data: bytes) -> None:
        for event in self.spdy.receive(data):
            if isinstance(event, StreamOpened):
                name = self.names[event.stream] = event.headers["streamtype"]
                self.heard.opened[name] = event.headers
            if isinstance(event, StreamOpened | DataReceived):
                name = self.names[event.stream]
                self.heard.data[name] += event.data if isinstance(event, DataReceived) else b""
                if event.end:
                    self.heard.ended.add(name)


def cuts(data: bytes) -> Iterable[list[bytes]]:
    yield [data]
    yield [data[position : position + 1] for position in range(len(data))]
    for position in range(1, len(data)):
        yield [data[:position], data[position:]]


def redeem(kind: str, token: str) -> StreamRequest | None:
    assert len(token) == 43
    if kind == "exec":
        return ExecRequest("c", ("sh",), Stdio(stdin=True, stdout=True))
    return PortForwardRequest("p")


def replayed(name: str) -> tuple[Upgrade, Listener]:
    """The client's side, which is the same however it is cut."""
    data = (RECORDED / f"{name}.client.bin").read_bytes()
    first: tuple[Upgrade, Listener] | None = None
    for pieces in cuts(data):
        reception, upgrade, listener = Reception(redeem), None, None
        for piece in pieces:
            if listener is not None:
                listener.feed(piece)
            elif (upgrade := reception.receive(piece)) is not None:
                listener = Listener(upgrade.websocket, upgrade.protocol, client=False)
                listener.feed(upgrade.early)
        assert upgrade is not None
        assert listener is not None
        if first is None:
            first = upgrade, listener
        assert listener.heard == first[1].heard
    assert first is not None
    return first


def answered(name: str, upgrade: Upgrade, asked: Listener) -> Heard:
    """Our side, as the client understands it. Its head is what is answered today."""
    data = (RECORDED / f"{name}.server.bin").read_bytes()
    head, _, rest = data.partition(b"\r\n\r\n")
    assert head + b"\r\n\r\n" == upgrade.answer
    first: Heard | None = None
    for pieces in cuts(rest):
        listener = Listener(upgrade.websocket, upgrade.protocol, client=True, names=dict(asked.names))
        for number in asked.names:
            assert listener.spdy.open([("streamtype", asked.names[number])]) == number
        listener.spdy.to_send()
        for piece in pieces:
            listener.feed(piece)
        first = first or listener.heard
        assert listener.heard == first
    assert first is not None
    return first


@pytest.mark.parametrize("name", COMMANDS)
def test_commands(name: str) -> None:
    upgrade, asked = replayed(name)
    assert upgrade.websocket == name.endswith("websocket")
    assert upgrade.protocol == ("v5.channel.k8s.io" if upgrade.websocket else "v4.channel.k8s.io")
    assert asked.heard.data["stdin"] == b"some input\n"
    assert "stdin" in asked.heard.ended
    if not upgrade.websocket:
        assert set(asked.heard.opened) == {"error", "stdin", "stdout", "stderr"}
    told = answered(name, upgrade, asked)
    assert (told.data["stdout"], told.data["stderr"]) == (b"some input\n", b"err\n")
    status = json.loads(told.data["error"])
    assert status["details"]["causes"] == [{"reason": "ExitCode", "message": "3"}]
    assert told.closed if upgrade.websocket else {"error", "stdout", "stderr"} <= told.ended


def test_a_terminal() -> None:
    upgrade, asked = replayed(TTY)
    assert set(asked.heard.opened) == {"error", "stdin", "stdout", "resize"}
    assert json.loads(asked.heard.data["resize"].splitlines()[0]) == {"Width": 111, "Height": 33}
    assert asked.heard.data["stdin"] == b"exit 3\n"
    assert b"exit 3\r\n" in answered(TTY, upgrade, asked).data["stdout"]


@pytest.mark.parametrize("name", FORWARDS)
def test_port_forwards(name: str) -> None:
    upgrade, asked = replayed(name)
    assert upgrade.protocol == (TUNNEL if name.endswith("websocket") else "portforward.k8s.io")
    assert {kind: (headers["port"], headers["requestid"]) for kind, headers in asked.heard.opened.items()} == {
        "error": ("80", "0"),
        "data": ("80", "0"),
    }
    assert asked.heard.data["data"].startswith(b"GET / HTTP/1.1\r\n")
    assert "error" in asked.heard.ended
    told = answered(name, upgrade, asked)
    assert told.data["data"].startswith(b"HTTP/1.1 200 OK\r\n")
    assert told.data["error"] == b""
