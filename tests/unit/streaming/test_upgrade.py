"""The request that opens a stream: what is agreed upon, and each way of being refused."""

from __future__ import annotations

import pytest

from bridge.core.stream_requests import PortForwardRequest, StreamRequest
from bridge.streaming.refusals import Refused
from bridge.streaming.upgrade import MAX_HEAD, Reception, Upgrade
from tests.unit.streaming.stream_client import CAT, FORWARD, KEY, request, spdy_headers, websocket_headers

URL = "http://node:1/exec/T"
TUNNEL = "SPDY/3.1+portforward.k8s.io"


def redeem(kind: str, token: str) -> StreamRequest | None:
    known: dict[str, StreamRequest] = {"exec": CAT, "portforward": FORWARD, "bare": PortForwardRequest("p")}
    return known.get(kind) if token == "T" else None


def ask(*headers: str, kind: str = "exec", method: str = "GET") -> Upgrade:
    upgrade = Reception(redeem).receive(request(f"http://node:1/{kind}/T", *headers, method=method))
    assert upgrade is not None
    return upgrade


def refused(data: bytes) -> tuple[int, bytes]:
    reception = Reception(redeem)
    with pytest.raises(Refused) as caught:
        reception.receive(data)
    answer = reception.refusal(caught.value)
    assert answer.startswith(b"HTTP/1.1 %d " % caught.value.status)
    assert b"\r\nConnection: close\r\n" in answer
    return caught.value.status, answer


def test_cut_anywhere_it_is_the_same() -> None:
    data = request(URL, *spdy_headers("v4.channel.k8s.io"), method="POST")
    whole = Reception(redeem).receive(data + b"early")
    assert whole == Upgrade(
        CAT, websocket=False, protocol="v4.channel.k8s.io", answer=whole.answer if whole is not None else b"", early=b"early"
    )
    assert whole.answer.startswith(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n")
    for cut in range(1, len(data)):
        reception = Reception(redeem)
        assert reception.receive(data[:cut]) is None
        assert reception.receive(data[cut:] + b"early") == whole
    reception = Reception(redeem)
    found = [reception.receive(bytes([byte])) for byte in data]
    assert [bool(upgrade) for upgrade in found] == [False] * (len(data) - 1) + [True]


def test_the_proof_of_a_websocket_is_the_standards() -> None:
    headers = ["Connection: Upgrade", "Upgrade: WebSocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in ask(*headers).answer  # RFC 6455 section 1.3


@pytest.mark.parametrize(
    ("kind", "wanted", "chosen"),
    [
        ("exec", ["v5.channel.k8s.io", "v4.channel.k8s.io"], "v5.channel.k8s.io"),
        ("exec", ["v6.channel.k8s.io", "base64.channel.k8s.io"], "base64.channel.k8s.io"),
        ("exec", [], ""),
        ("portforward", [TUNNEL, "v4.channel.k8s.io"], TUNNEL),
        ("portforward", ["v4.channel.k8s.io"], "v4.channel.k8s.io"),
        ("portforward", [], ""),
        ("bare", [TUNNEL], TUNNEL),
    ],
)
def test_protocols_of_websocket(kind: str, wanted: list[str], chosen: str) -> None:
    upgrade = ask(*websocket_headers(*wanted), kind=kind)
    assert (upgrade.websocket, upgrade.protocol) == (True, chosen)


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        (request("http://node:1/exec/wrong", *spdy_headers("v4.channel.k8s.io")), 404, b"not found"),
        (request("http://node:1/nothing/T", *spdy_headers("v4.channel.k8s.io")), 404, b"not found"),
        (request("http://node:1/exec/T/more", *spdy_headers("v4.channel.k8s.io")), 404, b"not found"),
        (request("http://node:1/", *spdy_headers("v4.channel.k8s.io")), 404, b"not found"),
        (request(URL, method="HEAD"), 405, b"Allow: GET, POST"),
        (request(URL, method="DELETE"), 405, b"Allow: GET, POST"),
        (b"CONNECT node:443 HTTP/1.1\r\nHost: node\r\n\r\n", 405, b"Allow: GET, POST"),
        (request(URL), 400, b"needs Connection: Upgrade"),
        (request(URL, "Connection: Upgrade", "Upgrade: h2c"), 400, b"needs Connection: Upgrade"),
        (request(URL, "Upgrade: SPDY/3.1", "X-Stream-Protocol-Version: v4.channel.k8s.io"), 400, b"needs Connection: Upgrade"),
        (request(URL, *spdy_headers()), 400, b"no X-Stream-Protocol-Version header"),
        (request(URL, *spdy_headers(" , ")), 400, b"no X-Stream-Protocol-Version header"),
        (
            request(URL, *spdy_headers("v9.channel.k8s.io")),
            403,
            b"X-Accepted-Stream-Protocol-Versions: v4.channel.k8s.io\r\nX-Accepted-Stream-Protocol-Versions: v3.channel.k8s.io",
        ),
        (request(URL, *spdy_headers("portforward.k8s.io")), 403, b"the client speaks portforward.k8s.io"),
        (request(URL, *websocket_headers("v9.channel.k8s.io")), 403, b"the client speaks v9.channel.k8s.io"),
        (request(URL, *websocket_headers(TUNNEL)), 403, b"v5.channel.k8s.io"),
        (request("http://node:1/portforward/T", *websocket_headers("v5.channel.k8s.io")), 403, TUNNEL.encode()),
        (request("http://node:1/bare/T", *websocket_headers("v4.channel.k8s.io")), 400, b"without ports"),
        (request(URL, *websocket_headers("v4.channel.k8s.io"), method="POST"), 400, b"WebSocket needs GET"),
        (
            request(URL, "Connection: Upgrade", "Upgrade: websocket", f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Version: 8"),
            426,
            b"Sec-WebSocket-Version: 13\r\n",
        ),
        (
            request(URL, "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: short", "Sec-WebSocket-Version: 13"),
            400,
            b"must be 16 bytes",
        ),
        (request(URL, *spdy_headers("v4.channel.k8s.io"), "Content-Length: 5") + b"hello", 400, b"without a body"),
        (request(URL, *spdy_headers("v4.channel.k8s.io"), "Transfer-Encoding: chunked"), 400, b"without a body"),
        (b"GET /exec/T HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n", 400, b"needs HTTP/1.1"),
        (b"GET /exec/T HTTP/1.1\r\n\r\n", 400, b"Host"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500) + b"\r\n\r\n", 400, b""),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 405, b""),
        (b"GET /exec/T HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n", 400, b""),
        (b"GET /exec/T HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, b""),
    ],
)
def test_refusals(data: bytes, status: int, words: bytes) -> None:
    found, answer = refused(data)
    assert found == status
    assert words in answer


def test_a_head_that_is_too_large_whole_or_not() -> None:
    assert refused(request(URL, f"X-Big: {'a' * MAX_HEAD}", *spdy_headers("v4.channel.k8s.io")))[0] == 431
    assert refused(b"GET /exec/T HTTP/1.1\r\nX-Big: " + b"a" * MAX_HEAD)[0] == 431
    fits = request(URL, f"X-Big: {'a' * (MAX_HEAD - 400)}", *spdy_headers("v4.channel.k8s.io"))
    upgrade = Reception(redeem).receive(fits + bytes(60000))  # what comes after the head counts not
    assert upgrade is not None
    assert len(upgrade.early) == 60000


def test_a_head_request_is_answered_without_a_body() -> None:
    assert refused(request(URL, method="HEAD"))[1].endswith(b"\r\n\r\n")
    assert refused(request(URL, method="PUT"))[1].endswith(b"served\n")


def test_a_token_is_not_asked_for_by_what_is_refused_before() -> None:
    asked: list[str] = []

    def note(kind: str, token: str) -> StreamRequest | None:
        asked.append(token)
        return None

    for data in (request(URL, method="HEAD"), request(URL, "Content-Length: 1") + b"x", b"GET  HTTP/1.1\r\n\r\n"):
        with pytest.raises(Refused):
            Reception(note).receive(data)
    assert asked == []
    with pytest.raises(Refused):
        Reception(note).receive(request(f"{URL}?command=sh&stdin=1"))
    assert asked == ["T"], "clients may add a query"
