"""The stream server on loopback, with clients that do what kubelets and crictl do, over SPDY and WebSocket, plain and TLS."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong

from bridge.core.stream_requests import AttachRequest, ExecRequest, PortForwardRequest, Stdio
from bridge.errors import ConfigError, HostError
from bridge.streaming.server import StreamServer, StreamSettings
from bridge.streaming.spdy import SpdyMachine
from bridge.streaming.spdy_events import DataReceived
from tests.unit.streaming.stream_client import (
    CAT,
    FORWARD,
    SUCCESS,
    EchoSessions,
    SpdyClient,
    WebSocketClient,
    asking,
    serving,
    spdy_command,
    spdy_headers,
    until,
    websocket,
    websocket_headers,
)


async def test_a_command_over_spdy() -> None:
    async with serving() as (server, sessions):
        async with spdy_command(server.url(CAT), "error", "stdin", "stdout", "stderr") as (spdy, stream):
            assert b"X-Stream-Protocol-Version: v4.channel.k8s.io\r\n" in spdy.client.answer
            assert b"Upgrade: SPDY/3.1\r\n" in spdy.client.answer
            (wire,) = server._running
            assert wire._transport is not None
            accepted = wire._transport.get_extra_info("socket")
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), "else each answer waits 40 ms for an acknowledgement"
            spdy.machine.send(stream["stdin"], b"hello", end=True)
            await spdy.flush()
            await spdy.take_until_end(stream["stdout"], stream["stderr"], stream["error"])
            assert (spdy.data(stream["stdout"]), spdy.data(stream["error"])) == (b"hello", SUCCESS)
            assert await spdy.client.is_hung_up_on()
        assert sessions.requests == [CAT]
        assert sessions.commands[0].structured
        assert sessions.commands[0].resize is None
        await until(lambda: (server.sessions, server.waiting) == (0, 0))


@pytest.mark.parametrize(
    ("version", "structured", "resize"), [("v4", True, True), ("v3", False, True), ("v2", False, False), ("", False, False)]
)
async def test_versions_of_the_command_protocol(version: str, structured: bool, resize: bool) -> None:
    request = AttachRequest("c1", Stdio(stdin=True, stdout=True, stderr=True, tty=True))  # a tty has no stderr, whatever is asked for
    name = f"{version}.channel.k8s.io" if version else "channel.k8s.io"
    streams = ["error", "stdin", "stdout", *(["resize"] if resize else [])]
    async with serving() as (server, sessions):
        async with spdy_command(server.url(request), *streams, version=name) as (spdy, stream):
            spdy.machine.send(stream["stdin"], b"", end=True)
            await spdy.flush()
            await spdy.take_until_end(stream["error"])
        (command,) = sessions.commands
        assert (command.structured, command.resize is not None, command.stderr) == (structured, resize, None)


async def test_the_clients_first_choice_is_taken_and_data_may_come_with_the_request() -> None:
    machine = SpdyMachine(client=True)
    for name in ("error", "stdin", "stdout", "stderr"):
        machine.open([("streamType", name)])
    machine.send(3, b"early", end=True)
    async with serving() as (server, _):
        versions = spdy_headers("v9.channel.k8s.io, v3.channel.k8s.io", "v4.channel.k8s.io")
        async with asking(server.url(CAT), *versions, method="POST", early=machine.to_send()) as client:
            assert b"X-Stream-Protocol-Version: v3.channel.k8s.io" in client.answer
            spdy = SpdyClient(client)
            spdy.machine = machine
            await spdy.take_until_end(5)
            assert spdy.data(5) == b"early"


async def test_port_forward_over_spdy() -> None:
    async with serving() as (server, sessions):
        async with asking(server.url(FORWARD), *spdy_headers("portforward.k8s.io"), method="POST") as client:
            spdy = SpdyClient(client)
            pairs = [
                (spdy.open(streamType="error", port="80", requestID=str(n)), spdy.open(streamType="data", port="80", requestID=str(n)))
                for n in range(3)
            ]
            for error, data in pairs:
                spdy.machine.send(error, b"", end=True)
                spdy.machine.send(data, b"%d" % data, end=True)
            await spdy.flush()
            await spdy.take_until_end(*(data for _, data in pairs))
            assert [spdy.data(data) for _, data in pairs] == [b"80:%d" % data for _, data in pairs]
        await until(lambda: not sessions.running and not server.sessions)


@pytest.mark.parametrize("protocol", ["v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io", "channel.k8s.io", ""])
async def test_a_command_over_websocket(protocol: str) -> None:
    async with serving() as (server, sessions):
        async with websocket(server.url(CAT), *([protocol] if protocol else [])) as client:
            assert (b"Sec-WebSocket-Protocol: " + protocol.encode() in client.client.answer) == bool(protocol)
            await client.take_until(1)
            assert client.messages == [b"\x01"], "an empty message on the first channel tells that all is well"
            await client.send(b"\x00hello")
            await client.take_until(2)
            assert client.messages[1] == b"\x01hello"
            if protocol.startswith("v5"):
                await client.send(b"\xff\x00")
                await client.take_all()
                assert (client.messages[2:], client.close_code) == ([b"\x03" + SUCCESS], 1000)
            else:
                await client.send(CloseConnection(code=1000))
                await client.take_all()
        assert sessions.commands[0].structured == protocol.startswith(("v4", "v5"))
        assert sessions.running == 0


@pytest.mark.parametrize("protocol", ["v4.base64.channel.k8s.io", "base64.channel.k8s.io"])
async def test_a_command_over_websocket_in_base64(protocol: str) -> None:
    async with serving() as (server, _):
        async with websocket(server.url(CAT), "v9.channel.k8s.io", protocol) as client:
            await client.send("0aGVsbG8=")
            await client.take_until(2)
            assert client.messages == ["1", "1aGVsbG8="]


async def test_messages_in_pieces_pings_and_channels_that_nobody_asked_for() -> None:
    async with serving() as (server, sessions):
        async with websocket(server.url(ExecRequest("c", ("cat",), Stdio(stdin=True, stdout=True))), "v5.channel.k8s.io") as client:
            await client.send(BytesMessage(data=b"\x00he", message_finished=False))
            await client.send(Ping(payload=b"are you there"))
            await client.send(BytesMessage(data=b"ll", message_finished=False))
            await client.send(BytesMessage(data=b"o", message_finished=True))
            await client.send(b"")
            await client.send(b"\x09nobody")
            await client.send(b"\x01not yours to write")
            await client.send(b'\x04{"Width":1,"Height":2}')
            await client.send(b"\xff\x00")
            await client.send(b"\x00after the end")
            await client.take_all()
            assert b"".join(message[1:] for message in client.messages if message[0] == 1) == b"hello"
            assert client.others == [Pong(payload=b"are you there")]
            assert client.close_code == 1000
        assert sessions.commands[0].stderr is None


async def test_a_client_that_breaks_the_protocol_is_told_the_code() -> None:
    async with serving() as (server, sessions):
        for protocol, message, code in (
            ("v5.channel.k8s.io", b"\xff\x00\x01", 1002),
            ("v5.channel.k8s.io", b"\xff", 1002),
            ("v4.base64.channel.k8s.io", "0a", 1007),
            ("v4.base64.channel.k8s.io", "0!!!!", 1007),
        ):
            async with websocket(server.url(CAT), protocol) as client:
                await client.send(message)
                await client.take_all()
                assert client.close_code == code
        async with asking(server.url(CAT), *websocket_headers("v4.channel.k8s.io")) as raw:
            broken = WebSocketClient(raw)
            await raw.send(b"\x83\x80\x00\x00\x00\x00")  # opcode 3 is nobody's
            await broken.take_all()
            assert broken.close_code == 1002
        assert sessions.running == 0


async def test_port_forward_over_websocket_channels() -> None:
    async with serving() as (server, _):
        async with websocket(server.url(FORWARD), "v4.channel.k8s.io") as client:
            await client.take_until(6)
            assert sorted(client.messages[:4]) == [b"\x00\x90\x1f", b"\x01\x90\x1f", b"\x02\x35\x00", b"\x03\x35\x00"]
            await client.send(b"\x02query")
            await client.take_until(7)
            assert sorted(client.messages[4:]) == [b"\x008080:", b"\x0253:", b"\x02query"]


async def test_port_forward_tunnelled_over_websocket() -> None:
    async with serving() as (server, sessions):
        async with websocket(server.url(PortForwardRequest("p1")), "SPDY/3.1+portforward.k8s.io") as client:
            machine = SpdyMachine(client=True)
            machine.open([("streamType", "error"), ("port", "80"), ("requestID", "0")])
            number = machine.open([("streamType", "data"), ("port", "80"), ("requestID", "0")])
            machine.send(number, b"through", end=True)
            sent = machine.to_send()
            for start in range(0, len(sent), 7):
                await client.send(sent[start : start + 7])
            found = b""
            while b"through" not in found:
                assert await client.take()
                while client.messages:
                    message = client.messages.pop(0)
                    assert isinstance(message, bytes)
                    found += b"".join(event.data for event in machine.receive(message) if isinstance(event, DataReceived))
            assert found == b"80:through"
            await client.send("text carries no SPDY")
            await client.take_all()
            assert client.close_code == 1003
        assert sessions.running == 0


async def test_losing_the_client_ends_the_session() -> None:
    async with serving() as (server, sessions):
        async with spdy_command(server.url(CAT), "error", "stdin", "stdout", "stderr"):
            await until(lambda: sessions.running == 1)
        async with websocket(server.url(CAT), "v4.channel.k8s.io") as client:
            await client.take_until(1)
        await until(lambda: not sessions.running and not server.sessions)


async def test_a_session_that_fails_is_logged_and_costs_its_own_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(EchoSessions):
        async def exec(self, request: ExecRequest, command: object) -> None:
            raise RuntimeError("a defect")

    async with StreamServer.open(StreamSettings(), Broken()) as server:
        async with websocket(server.url(CAT), "v4.channel.k8s.io") as client:
            await client.take_all()
            assert client.close_code == 1011
        async with spdy_command(server.url(CAT), "error", "stdin", "stdout", "stderr") as (spdy, _):
            assert await spdy.client.is_hung_up_on()
        assert "a defect" in caplog.text
        async with asking(server.url(FORWARD), *spdy_headers("portforward.k8s.io")) as forward:
            assert forward.status == 101


async def test_the_end_of_the_server_ends_its_sessions() -> None:
    async with AsyncExitStack() as clients:
        async with serving() as (server, sessions):
            client = await clients.enter_async_context(websocket(server.url(CAT), "v4.channel.k8s.io"))
            await client.take_until(1)
        assert sessions.running == 0
        await client.take_all()
        assert client.close_code == 1000


async def test_where_it_can_not_listen() -> None:
    async with serving() as (server, _):
        port = int(server.base_url.rpartition(":")[2])
        with pytest.raises(HostError, match="in use"):
            async with StreamServer.open(StreamSettings(port=port), EchoSessions()):
                pass
    with pytest.raises(ConfigError, match="no IP address"):
        async with StreamServer.open(StreamSettings(address="node"), EchoSessions()):
            pass


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (StreamSettings(address="0.0.0.0"), "http://127.0.0.1:"),
        (StreamSettings(address="::1"), "http://[::1]:"),
        (StreamSettings(host="node.example"), "http://node.example:"),
    ],
)
async def test_what_urls_name(settings: StreamSettings, expected: str, caplog: pytest.LogCaptureFixture) -> None:
    async with StreamServer.open(settings, EchoSessions()) as server:
        assert server.url(CAT).startswith(expected)
        assert ("as they are" in caplog.text) == (settings.address == "0.0.0.0")


# TLS


def certificate(directory: Path, name: str, *more: str) -> None:
    made = ["openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.pem", "-days", "2"]
    subprocess.run([*made, "-subj", f"/CN={name}", *more], cwd=directory, check=True, capture_output=True)


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl program to make certificates")
    for name in ("first", "second"):
        certificate(tmp_path, name, "-addext", "subjectAltName=IP:127.0.0.1")
    certificate(tmp_path, "client")
    for kind in ("pem", "key"):
        shutil.copy(tmp_path / f"first.{kind}", tmp_path / f"server.{kind}")
    return tmp_path


def trusting(pki: Path, name: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(pki / f"{name}.pem"))


async def test_tls_and_a_certificate_that_is_renewed(pki: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(certificate=pki / "server.pem", key=pki / "server.key") as (server, _):
        assert server.base_url.startswith("https://127.0.0.1:")
        async with asking(server.url(CAT), *websocket_headers("v5.channel.k8s.io"), context=trusting(pki, "first")) as client:
            talk = WebSocketClient(client)
            await talk.send(b"\x00hello")
            await talk.take_until(2)
            await talk.send(b"\xff\x00")
            await talk.take_all()
            assert (talk.messages[1], talk.close_code) == (b"\x01hello", 1000)
        shutil.copy(pki / "second.key", pki / "server.key")  # its certificate is still the first
        async with asking(server.url(CAT), context=trusting(pki, "first")) as client:
            assert client.status == 400
        assert "the last one serves on" in caplog.text
        shutil.copy(pki / "second.pem", pki / "server.pem")
        async with asking(server.url(CAT), context=trusting(pki, "second")) as client:
            assert client.status == 400
        with pytest.raises(ssl.SSLError):
            async with asking(server.url(CAT), context=trusting(pki, "first")):
                pass
        (pki / "server.pem").unlink()
        async with asking(server.url(CAT), context=trusting(pki, "second")) as client:
            assert client.status == 400


async def test_clients_may_be_asked_for_a_certificate(pki: Path) -> None:
    async with serving(certificate=pki / "server.pem", key=pki / "server.key", authorities=pki / "client.pem") as (server, _):
        known = trusting(pki, "first")
        known.load_cert_chain(pki / "client.pem", pki / "client.key")
        async with asking(server.url(CAT), context=known) as client:
            assert client.status == 400
        with pytest.raises((ssl.SSLError, ConnectionError, EOFError)):
            async with asking(server.url(CAT), context=trusting(pki, "first")):
                pass


async def test_certificates_that_are_none_are_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("")
    for name, words in (("absent.pem", "No such file"), ("empty.pem", "no PEM certificate")):
        with pytest.raises(ConfigError, match=words):
            async with serving(certificate=tmp_path / name):
                pass


async def test_a_client_without_tls_is_hung_up_on(pki: Path) -> None:
    async with serving(certificate=pki / "server.pem", key=pki / "server.key") as (server, _):
        plain = server.url(CAT).replace("https", "http")
        with pytest.raises((EOFError, ConnectionError)):
            async with asking(plain):
                pass
        async with asking(server.url(CAT), context=trusting(pki, "first")) as client:
            assert client.status == 400
