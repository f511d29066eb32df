"""The HTTP/1.1 request that opens a stream, without I/O: bytes in, an Upgrade or a refusal out.

Everything but the upgrade of a known path is refused; a connection has one request only. What peers answer is kept where clients
look at it: 403 with the list of what there is when no protocol suits both, 400 when the request can't be understood.
Source: RFC 9112 (by h11), RFC 6455 section 4.2, k8s.io/apimachinery httpstream (``X-Stream-Protocol-Version``).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

import h11

from bridge.core.stream_requests import PortForwardRequest, StreamRequest
from bridge.streaming.refusals import Refused

MAX_HEAD = 16 << 10
"""Bytes of request line and headers."""
_METHODS = ("GET", "POST")
_SPDY = "SPDY/3.1"
_VERSION = "X-Stream-Protocol-Version"
_ACCEPTED = "X-Accepted-Stream-Protocol-Versions"
_COMMAND_VERSIONS = ("v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io")
PORT_FORWARD = "portforward.k8s.io"
TUNNEL = f"{_SPDY}+{PORT_FORWARD}"
_COMMAND_PROTOCOLS = ("v5.channel.k8s.io", *_COMMAND_VERSIONS, "v4.base64.channel.k8s.io", "base64.channel.k8s.io", "")
_FORWARD_PROTOCOLS = (TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "")
_RFC6455_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_SWITCHING = 101


@dataclass(frozen=True, slots=True)
class Upgrade:
    """What client and server agreed upon. ``early``: bytes that the client sent after its request."""

    request: StreamRequest
    websocket: bool
    protocol: str
    answer: bytes
    early: bytes = b""


@dataclass(slots=True)
class Reception:
    """Reads one request. ``redeem`` gives what a kind of stream and its token were issued for, None when that is no good."""

    redeem: Callable[[str, str], StreamRequest | None]
    _http: h11.Connection = field(default_factory=lambda: h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD))
    _size: int = 0
    _method: str = ""

    def receive(self, data: bytes) -> Upgrade | None:
        """The upgrade once the request is whole. Raises Refused, whose ``answer`` is to be sent before hanging up."""
        self._size += len(data)
        try:
            self._http.receive_data(data)
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                return None
            if not isinstance(event, h11.Request):
                raise Refused(400, "the client left before its request was whole")
            self._method = event.method.decode("ascii", "replace")
            return self._upgrade(event)
        except h11.RemoteProtocolError as exc:
            raise Refused(exc.error_status_hint, str(exc)) from exc

    def refusal(self, refused: Refused) -> bytes:
        """The answer to be sent."""
        body = b"" if self._method == "HEAD" else refused.message.encode() + b"\n"
        headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body))), ("Connection", "close")]
        answer = h11.Connection(h11.SERVER)  # the one that read the request may be beyond answering
        return b"".join(
            answer.send(event) or b""
            for event in (
                h11.Response(status_code=refused.status, reason=_reason(refused.status), headers=[*headers, *refused.headers]),
                h11.Data(data=body),
            )
        )

    def _upgrade(self, request: h11.Request) -> Upgrade:
        early = self._http.trailing_data[0]
        if self._size - len(early) > MAX_HEAD:
            raise Refused(431, f"request line and headers of more than {MAX_HEAD} bytes")
        if self._method not in _METHODS:
            raise Refused(405, "only GET and POST are served", [("Allow", ", ".join(_METHODS))])
        headers = _Headers(request.headers)
        if request.http_version != b"1.1" or headers.has("transfer-encoding") or headers.first("content-length") not in ("", "0"):
            raise Refused(400, "unable to upgrade: needs HTTP/1.1 and a request without a body")
        asked = self._redeem(request.target.decode("ascii", "replace"))
        upgrades = headers.all("upgrade")
        if "upgrade" in headers.all("connection"):
            if "websocket" in upgrades:
                protocol, answer = _websocket(asked, headers, self._method)
                return Upgrade(asked, True, protocol, self._switch(answer), early)
            if _SPDY.lower() in upgrades:
                protocol = _spdy(asked, headers)
                return Upgrade(asked, False, protocol, self._switch([("Upgrade", _SPDY), (_VERSION, protocol)]), early)
        raise Refused(400, f"unable to upgrade: needs Connection: Upgrade with Upgrade: {_SPDY} or websocket")

    def _redeem(self, target: str) -> StreamRequest:
        parts = target.partition("?")[0].split("/")
        asked = self.redeem(parts[1], parts[2]) if len(parts) == 3 and not parts[0] else None
        if asked is None:
            raise Refused(404, "not found")
        return asked

    def _switch(self, headers: Sequence[tuple[str, str]]) -> bytes:
        self._http.next_event()  # the end of the request, which has no body
        answer = h11.InformationalResponse(
            status_code=_SWITCHING, reason=_reason(_SWITCHING), headers=[("Connection", "Upgrade"), *headers]
        )
        return self._http.send(answer) or b""


def _reason(status: int) -> str:
    return HTTPStatus(status).phrase


class _Headers:
    """Request headers by lower-case name."""

    def __init__(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in headers:
            self._values.setdefault(name.decode("ascii"), []).append(value.decode("latin-1"))

    def has(self, name: str) -> bool:
        return name in self._values

    def first(self, name: str) -> str:
        return self._values.get(name, [""])[0].strip()

    def listed(self, name: str) -> list[str]:
        """The members of comma-separated lists."""
        return [text for value in self._values.get(name, []) for part in value.split(",") if (text := part.strip())]

    def all(self, name: str) -> list[str]:
        return [text.lower() for text in self.listed(name)]


def _chosen(wanted: Sequence[str], served: Sequence[str], accepted: str) -> str:
    """The first that the client wants and the server has."""
    for name in wanted:
        if name in served:
            return name
    shown = [name for name in served if name]
    words = f"unable to upgrade: the client speaks {', '.join(wanted)}; this server {', '.join(shown)}"
    raise Refused(403, words, [(accepted, name) for name in shown])


def _spdy(asked: StreamRequest, headers: _Headers) -> str:
    wanted = headers.listed(_VERSION.lower())
    if not wanted:
        raise Refused(400, f"unable to upgrade: no {_VERSION} header")
    return _chosen(wanted, (PORT_FORWARD,) if isinstance(asked, PortForwardRequest) else _COMMAND_VERSIONS, _ACCEPTED)


def _websocket(asked: StreamRequest, headers: _Headers, method: str) -> tuple[str, list[tuple[str, str]]]:
    if method != "GET":
        raise Refused(400, "unable to upgrade: WebSocket needs GET")
    if headers.first("sec-websocket-version") != "13":
        raise Refused(426, "unable to upgrade: needs WebSocket version 13", [("Sec-WebSocket-Version", "13"), ("Upgrade", "websocket")])
    key = headers.first("sec-websocket-key")
    try:
        valid = len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        valid = False
    if not valid:
        raise Refused(400, "unable to upgrade: Sec-WebSocket-Key must be 16 bytes in base64")
    forwarding = isinstance(asked, PortForwardRequest)
    wanted = headers.listed("sec-websocket-protocol") or [""]
    protocol = _chosen(wanted, _FORWARD_PROTOCOLS if forwarding else _COMMAND_PROTOCOLS, "Sec-WebSocket-Protocol")
    if isinstance(asked, PortForwardRequest) and protocol != TUNNEL and not asked.ports:
        raise Refused(400, "unable to upgrade: the stream was asked for without ports, so only tunnelling can forward them")
    proof = base64.b64encode(hashlib.sha1(key.encode() + _RFC6455_GUID, usedforsecurity=False).digest()).decode()
    chosen = [("Sec-WebSocket-Protocol", protocol)] if protocol else []
    return protocol, [("Upgrade", "websocket"), ("Sec-WebSocket-Accept", proof), *chosen]
