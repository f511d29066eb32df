"""The client: complete, typed, and clear when things go wrong. (Its calls are tested with the server, in api/.)"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest
from grpclib.const import Handler, Status

from bridge import client, errors
from bridge._proto.bridge.admin import v1 as admin
from bridge._proto.runtime import v1 as pb
from bridge.api.server import GrpcServer
from bridge.client import CriError, Streaming, Unary, connect

SERVICES: list[tuple[type[client.Service], Any]] = [
    (client.RuntimeService, pb.RuntimeServiceBase),
    (client.ImageService, pb.ImageServiceBase),
    (client.AdminService, admin.AdminBase),
]


@pytest.mark.parametrize(("service", "server"), SERVICES, ids=[service.__name__ for service, _ in SERVICES])
def test_every_rpc_is_there_with_its_types(service: type[client.Service], server: Any) -> None:
    handlers: Mapping[str, Handler] = server().__mapping__()
    rpcs = {name: rpc for name, rpc in vars(service).items() if isinstance(rpc, Unary | Streaming)}
    assert {f"{service.path}/{rpc.name}" for rpc in rpcs.values()} == set(handlers)
    for name, rpc in rpcs.items():
        handler = handlers[f"{service.path}/{rpc.name}"]
        assert (rpc.request_type, rpc.answer_type) == (handler.request_type, handler.reply_type), name
        assert isinstance(rpc, Streaming) is handler.cardinality.server_streaming, name
        assert hasattr(server, name), "named as on the server's side"


async def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(CriError, match=r"no server answers on .*cri\.sock: No such file") as info:
        async with connect(tmp_path / "cri.sock"):
            pass
    assert info.value.code is Status.UNAVAILABLE
    assert isinstance(info.value, errors.BridgeError)


class Runtime(pb.RuntimeServiceBase):
    async def version(self, message: pb.VersionRequest) -> pb.VersionResponse:
        return pb.VersionResponse(runtime_name="fake")

    async def stop_container(self, message: pb.StopContainerRequest) -> pb.StopContainerResponse:
        await anyio.sleep_forever()
        raise AssertionError


async def test_waiting_for_a_server_that_is_late(tmp_path: Path) -> None:
    path = tmp_path / "cri.sock"
    trying = asyncio.Event()

    async def call() -> str:
        trying.set()
        async with connect(path, wait=10) as cri:
            return (await cri.runtime.version()).runtime_name

    task = asyncio.create_task(call())
    await trying.wait()
    async with GrpcServer([Runtime()]) as server:
        await server.listen(path)
        assert await task == "fake"


async def test_timeouts(tmp_path: Path) -> None:
    async with GrpcServer([Runtime()]) as server:
        await server.listen(tmp_path / "cri.sock")
        async with connect(tmp_path / "cri.sock", timeout=0.05) as cri:
            with pytest.raises(CriError) as info:
                await cri.runtime.stop_container()
            assert info.value.code is Status.DEADLINE_EXCEEDED
            assert (await cri.runtime.version(timeout=10)).runtime_name == "fake"


async def test_a_server_that_goes_away(tmp_path: Path) -> None:
    async with GrpcServer([Runtime()]) as server:
        await server.listen(tmp_path / "cri.sock")
        async with connect(tmp_path / "cri.sock", timeout=5) as cri:
            await cri.runtime.version()
            await server.close(grace=0)
            with pytest.raises(CriError) as info:
                await cri.runtime.version()
            assert info.value.code is Status.UNAVAILABLE


async def test_a_server_that_comes_back(tmp_path: Path) -> None:
    async with GrpcServer([Runtime()]) as first:
        await first.listen(tmp_path / "cri.sock")
        async with connect(tmp_path / "cri.sock", timeout=5) as cri:
            await cri.runtime.version()
            await first.close(grace=0)
            async with GrpcServer([Runtime()]) as second:
                await second.listen(tmp_path / "cri.sock")
                with anyio.fail_after(5):
                    while True:
                        try:
                            assert (await cri.runtime.version()).runtime_name == "fake"
                        except CriError:
                            await anyio.sleep(0.01)  # the end of the old connection has not been read yet
                        else:
                            break


async def test_a_peer_that_speaks_no_grpc(tmp_path: Path) -> None:
    async def babble(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_unix_server(babble, tmp_path / "cri.sock")
    try:
        with pytest.raises(CriError) as info:
            async with connect(tmp_path / "cri.sock", timeout=5) as cri:
                await cri.runtime.version()
        assert info.value.code is Status.UNAVAILABLE
    finally:
        server.close()
