"""As much of kube-apiserver and kubelet as kubectl needs for exec, attach, cp and port-forward, over one pod of a real server.

It answers discovery and GET pod, asks the server for a URL with what kubectl's query says, and passes the connection on byte for byte
but for the request's path: so what kubectl and the server say to each other is theirs alone. Plain HTTP, for tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

from bridge._proto.runtime import v1 as pb
from bridge.client import CriClient

_PODS = "/api/v1/namespaces/default/pods/"
_SUBRESOURCES = ("pods", "pods/exec", "pods/attach", "pods/portforward")
_ROOM = 64 << 10


class FakeApiServer:
    """Pods by name: their sandbox's id and their containers' ids by name. ``upgrades``: what was asked for, (subresource, protocol)."""

    def __init__(self, cri: CriClient, pods: Mapping[str, tuple[str, Mapping[str, str]]]) -> None:
        self._cri = cri
        self._pods = pods
        self._connections: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}
        self.upgrades: list[tuple[str, str]] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, to its end."""
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while await self._request(reader, writer):
                    pass
        finally:
            del self._connections[task]
            writer.close()

    async def end(self) -> None:
        """End every connection."""
        for writer in self._connections.values():
            writer.transport.abort()
        if self._connections:
            await asyncio.wait(tuple(self._connections))

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
        path = urlsplit(target).path
        if "upgrade" in headers:
            await self._pass_on(method, target, head, headers["upgrade"], reader, writer)
            return False
        answer, status = self._answer(path), 200
        if answer is None:
            answer, status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}, 404
        body = json.dumps(answer).encode()
        writer.write(b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body)
        await writer.drain()
        return True

    def _answer(self, path: str) -> Mapping[str, Any] | None:
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": []}
        if path == "/api/v1":
            kinds = [{"name": name, "singularName": "", "namespaced": True, "kind": "Pod", "verbs": ["get"]} for name in _SUBRESOURCES]
            return {"kind": "APIResourceList", "groupVersion": "v1", "resources": kinds}
        name = path.removeprefix(_PODS)
        if name not in self._pods:
            return None
        containers = self._pods[name][1]
        return {
            "kind": "Pod",
            "apiVersion": "v1",
            "metadata": {"name": name, "namespace": "default", "uid": "1"},
            "spec": {"containers": [{"name": each, "image": "x", "stdin": True, "tty": each == "terminal"} for each in containers]},
            "status": {"phase": "Running"},
        }

    async def _pass_on(
        self, method: str, target: str, head: bytes, protocol: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        parts = urlsplit(target)
        name, _, kind = parts.path.removeprefix(_PODS).partition("/")
        self.upgrades.append((kind, protocol.lower()))
        url = urlsplit(await self._stream_url(name, kind, parse_qs(parts.query)))
        there, back = await asyncio.open_connection(url.hostname, url.port)
        back.write(f"{method} {url.path} HTTP/1.1".encode() + head[head.index(b"\r\n") :])
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_copy(reader, back))
                group.create_task(_copy(there, writer))
        finally:
            back.close()

    async def _stream_url(self, name: str, kind: str, query: Mapping[str, Sequence[str]]) -> str:
        sandbox, containers = self._pods[name]
        if kind == "portforward":
            ports = [int(port) for port in query.get("ports", ())]
            return (await self._cri.runtime.port_forward(pb.PortForwardRequest(pod_sandbox_id=sandbox, port=ports))).url
        stdin, stdout, stderr, tty = (query.get(name, ["false"])[0] == "true" for name in ("stdin", "stdout", "stderr", "tty"))
        container = containers[query["container"][0]]
        if kind == "attach":
            attach = pb.AttachRequest(container_id=container, stdin=stdin, stdout=stdout, stderr=stderr and not tty, tty=tty)
            return (await self._cri.runtime.attach(attach)).url
        command = list(query["command"])
        request = pb.ExecRequest(container_id=container, cmd=command, stdin=stdin, stdout=stdout, stderr=stderr and not tty, tty=tty)
        return (await self._cri.runtime.exec(request)).url


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_ROOM):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


@asynccontextmanager
async def fake_api_server(cri: CriClient, pods: Mapping[str, tuple[str, Mapping[str, str]]]) -> AsyncIterator[FakeApiServer]:
    """Serves while the block runs."""
    made = FakeApiServer(cri, pods)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, limit=_ROOM)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        server.close()
        await made.end()
        await server.wait_closed()
