"""The server over a real socket, as our client and as a foreign one (grpcio) see it."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import grpc
import grpc.aio
import pytest
from grpclib.const import Status

from bridge import errors, log
from bridge._proto.runtime import v1 as pb
from bridge.api import encoding
from bridge.api.connections import MAX_STREAMS
from bridge.api.errors import MESSAGE_LIMIT, TABLE
from bridge.api.server import MAX_MESSAGE, GrpcServer
from bridge.client import CriClient, CriError, connect

RUNTIME = "/runtime.v1.RuntimeService"


class Runtime(pb.RuntimeServiceBase):
    """A service whose behaviour the tests choose."""

    def __init__(self) -> None:
        super().__init__()
        self.failure: BaseException | None = None
        self.hold = asyncio.Event()
        self.entered = 0
        self.cancelled = asyncio.Event()
        self.undone = asyncio.Event()
        self.closed_streams = asyncio.Event()
        self.fields: dict[str, str] = {}

    async def version(self, message: pb.VersionRequest) -> pb.VersionResponse:
        self.fields = dict(log.current())
        if self.failure is not None:
            raise self.failure
        return pb.VersionResponse(version=message.version)

    async def start_container(self, message: pb.StartContainerRequest) -> pb.StartContainerResponse:
        """Hangs until released; notes how it ended."""
        self.entered += 1
        try:
            await self.hold.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0)
            self.undone.set()
            raise
        return pb.StartContainerResponse()

    async def exec_sync(self, message: pb.ExecSyncRequest) -> pb.ExecSyncResponse:
        return pb.ExecSyncResponse(stdout=b"x" * int(message.timeout))

    async def list_containers(self, message: pb.ListContainersRequest) -> pb.ListContainersResponse:
        items = [pb.Container(id=str(number)) for number in range(3)]
        return encoding.ready(pb.ListContainersResponse, [encoding.piece(1, item) for item in items])

    async def list_pod_sandbox(self, message: pb.ListPodSandboxRequest) -> pb.ListPodSandboxResponse:
        return pb.VersionResponse()  # type: ignore[return-value]  # a bug, on purpose

    async def get_container_events(self, message: pb.GetEventsRequest) -> AsyncIterator[pb.ContainerEventResponse]:
        try:
            for number in range(3):
                yield pb.ContainerEventResponse(container_id=str(number))
            if self.failure is not None:
                raise self.failure
            await self.hold.wait()
        finally:
            self.closed_streams.set()


@asynccontextmanager
async def serving(tmp_path: Path, runtime: Runtime) -> AsyncIterator[tuple[GrpcServer, CriClient]]:
    async with GrpcServer([runtime]) as server:
        await server.listen(tmp_path / "cri.sock")
        async with connect(tmp_path / "cri.sock", timeout=20) as cri:
            yield server, cri


@asynccontextmanager
async def foreign(tmp_path: Path) -> AsyncIterator[Any]:
    """A grpcio channel: ``call(method, request bytes)`` gives the answer's bytes."""
    async with grpc.aio.insecure_channel(
        f"unix:{tmp_path}/cri.sock", options=[("grpc.max_receive_message_length", MAX_MESSAGE)]
    ) as channel:

        async def call(method: str, request: bytes = b"", timeout: float = 20) -> bytes:
            return await channel.unary_unary(f"{RUNTIME}/{method}")(request, timeout=timeout)  # type: ignore[no-any-return]

        yield call


def every_error() -> list[tuple[errors.BridgeError, Status]]:
    """One error of each class of bridge.errors that may be raised, with the code that the design gives it."""
    special: dict[type[errors.BridgeError], Any] = {
        errors.RuntimeFailed: lambda: errors.RuntimeFailed(handler="runc", verb="run", exit_code=1, log_tail=["no"])
    }
    found: list[tuple[errors.BridgeError, Status]] = []
    for cls in vars(errors).values():
        if inspect.isclass(cls) and issubclass(cls, errors.BridgeError) and cls not in (errors.BridgeError, errors.KubeletVisible):
            row = next(base for base in cls.__mro__ if base in TABLE)
            found.append((special.get(cls, lambda cls=cls: cls("what happened"))(), TABLE[row]))
    return found


DESIGN = {
    "InvalidRequest": "INVALID_ARGUMENT",
    "NotFound": "NOT_FOUND",
    "AlreadyExists": "ALREADY_EXISTS",
    "IllegalTransition": "FAILED_PRECONDITION",
    "Unavailable": "UNAVAILABLE",
    "MonitorGone": "UNAVAILABLE",
    "ImagePullFailed": "INTERNAL",
    "ImageAbsent": "NOT_FOUND",
    "TimedOut": "DEADLINE_EXCEEDED",
    "LimitExceeded": "RESOURCE_EXHAUSTED",
    "Denied": "PERMISSION_DENIED",
    "Unsupported": "UNIMPLEMENTED",
    "RuntimeFailed": "INTERNAL",
    "RegistryUnavailable": "UNKNOWN",
    "SignatureValidationFailed": "UNKNOWN",
    "RROUnsupported": "UNKNOWN",
    "ImageVolumeMountFailed": "UNKNOWN",
}


def test_the_table_says_what_the_design_says() -> None:
    codes = {type(error).__name__: status.name for error, status in every_error()}
    assert codes.items() >= DESIGN.items()
    assert {name for name, code in codes.items() if code == "UNKNOWN"} == {name for name, code in DESIGN.items() if code == "UNKNOWN"}


@pytest.mark.parametrize(
    ("error", "status"), every_error(), ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.name
)
async def test_error_table(tmp_path: Path, error: errors.BridgeError, status: Status) -> None:
    runtime = Runtime()
    async with serving(tmp_path, runtime) as (_, cri), foreign(tmp_path) as call:
        for failure in (error, ExceptionGroup("from a task group", [error])):
            runtime.failure = failure
            with pytest.raises(CriError) as ours:
                await cri.runtime.version()
            assert (ours.value.code, ours.value.message) == (status, str(error))
            with pytest.raises(grpc.aio.AioRpcError) as theirs:
                await call("Version")
            assert theirs.value.code().value[0] == status.value
            assert theirs.value.details() == str(error)


async def test_a_kubelet_sees_the_word_it_compares_at_the_beginning(tmp_path: Path) -> None:
    runtime = Runtime()
    async with serving(tmp_path, runtime), foreign(tmp_path) as call:
        runtime.failure = errors.RegistryUnavailable("503")
        with pytest.raises(grpc.aio.AioRpcError) as info:
            await call("Version")
        assert info.value.code() is grpc.StatusCode.UNKNOWN
        assert info.value.details() == "RegistryUnavailable: 503"


async def test_a_bug_is_internal_and_logged_with_the_request_id(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runtime = Runtime()
    runtime.failure = KeyError("oops")
    async with serving(tmp_path, runtime) as (_, cri):
        with caplog.at_level(logging.ERROR, "bridge.api"), pytest.raises(CriError) as info:
            await cri.runtime.version()
    assert info.value.code is Status.INTERNAL
    request = runtime.fields["request"]
    assert request in info.value.message
    assert "KeyError" in info.value.message
    assert caplog.records[0].exc_info is not None
    assert runtime.fields["rpc"] == "Version"


async def test_an_answer_of_the_wrong_type_is_a_bug(tmp_path: Path) -> None:
    async with serving(tmp_path, Runtime()) as (_, cri):
        with pytest.raises(CriError, match="a ListPodSandboxResponse is due") as info:
            await cri.runtime.list_pod_sandbox()
        assert info.value.code is Status.INTERNAL


async def test_long_and_odd_messages_arrive(tmp_path: Path) -> None:
    runtime = Runtime()
    async with serving(tmp_path, runtime) as (_, cri), foreign(tmp_path) as call:
        runtime.failure = errors.NotFound("grüße\n\t100 % 😀")
        with pytest.raises(CriError) as info:
            await cri.runtime.version()
        assert info.value.message == "grüße\n\t100 % 😀"
        runtime.failure = errors.HostError("begin" + "é" * 100_000 + "end")
        with pytest.raises(CriError) as info:
            await cri.runtime.version()
        assert info.value.message.startswith("begin")
        assert info.value.message.endswith("end")
        assert MESSAGE_LIMIT / 8 < len(info.value.message) < MESSAGE_LIMIT
        with pytest.raises(grpc.aio.AioRpcError, match="begin"):
            await call("Version", timeout=5)


@pytest.mark.parametrize("method", ["/runtime.v1.RuntimeService/FromTheFuture", "/runtime.v1.RuntimeService/Exec", "/other.Service/Method"])
async def test_unregistered_and_missing_methods_are_unimplemented(tmp_path: Path, method: str) -> None:
    async with serving(tmp_path, Runtime()):
        async with grpc.aio.insecure_channel(f"unix:{tmp_path}/cri.sock") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as info:
                await channel.unary_unary(method)(b"", timeout=20)
            assert info.value.code() is grpc.StatusCode.UNIMPLEMENTED
            with pytest.raises(grpc.aio.AioRpcError) as info:
                async for _ in channel.unary_stream(method)(b"", timeout=20):
                    pass
            assert info.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_missing_streaming_method_is_unimplemented(tmp_path: Path) -> None:
    async with serving(tmp_path, Runtime()) as (_, cri):
        with pytest.raises(CriError) as info:
            await anext(cri.runtime.stream_containers())
        assert info.value.code is Status.UNIMPLEMENTED


async def test_requests_that_make_no_sense(tmp_path: Path) -> None:
    async with serving(tmp_path, Runtime()), foreign(tmp_path) as call:
        with pytest.raises(grpc.aio.AioRpcError, match="malformed VersionRequest") as info:
            await call("Version", b"\xff\xff")
        assert info.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        async with grpc.aio.insecure_channel(f"unix:{tmp_path}/cri.sock") as channel:
            with pytest.raises(grpc.aio.AioRpcError, match="compressed") as info:
                await channel.unary_unary(f"{RUNTIME}/Version")(b"x" * 5000, timeout=20, compression=grpc.Compression.Gzip)
            assert info.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_ready_answers_reach_a_foreign_client(tmp_path: Path) -> None:
    async with serving(tmp_path, Runtime()) as (_, cri), foreign(tmp_path) as call:
        assert [item.id for item in (await cri.runtime.list_containers()).containers] == ["0", "1", "2"]
        assert await call("ListContainers") == encoding.encode(
            pb.ListContainersResponse(containers=[pb.Container(id=str(n)) for n in range(3)])
        )


async def test_messages_up_to_16_mib_both_ways_and_no_larger(tmp_path: Path) -> None:
    async with serving(tmp_path, Runtime()) as (_, cri), foreign(tmp_path) as call:
        room = MAX_MESSAGE - 8
        answer = pb.ExecSyncResponse()
        for size in (16_379, 16_380, 70_000, 5 << 20, room):
            answer = await cri.runtime.exec_sync(pb.ExecSyncRequest(timeout=size))
            assert len(answer.stdout) == size
        assert len(await call("ExecSync", encoding.encode(pb.ExecSyncRequest(timeout=room)))) > room
        with pytest.raises(CriError, match="the answer has") as info:
            await cri.runtime.exec_sync(pb.ExecSyncRequest(timeout=MAX_MESSAGE + 1))
        assert info.value.code is Status.RESOURCE_EXHAUSTED
        version = "v" * room
        assert (await cri.runtime.version(pb.VersionRequest(version=version))).version == version
        with pytest.raises(CriError, match="the request has") as info:
            await cri.runtime.version(pb.VersionRequest(version=version + "12345678"))
        assert info.value.code is Status.RESOURCE_EXHAUSTED
        assert (await cri.runtime.version()).version == "", "the connection lives on"


async def test_the_callers_deadline_reaches_the_method(tmp_path: Path) -> None:
    runtime = Runtime()
    async with serving(tmp_path, runtime) as (server, cri), foreign(tmp_path) as call:
        with pytest.raises(grpc.aio.AioRpcError) as info:
            await call("StartContainer", timeout=0.1)
        assert info.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        with anyio.fail_after(5):
            await runtime.undone.wait()
        with pytest.raises(CriError) as ours:
            await cri.runtime.start_container(timeout=0.05)
        assert ours.value.code is Status.DEADLINE_EXCEEDED
        while server.in_flight:
            await anyio.sleep(0.005)
        assert (await cri.runtime.version()).version == ""


async def test_a_caller_that_gives_up_cancels_the_method(tmp_path: Path) -> None:
    runtime = Runtime()
    async with serving(tmp_path, runtime) as (server, cri):
        async with anyio.create_task_group() as group:
            group.start_soon(cri.runtime.start_container)
            while not runtime.entered:
                await anyio.sleep(0.005)
            group.cancel_scope.cancel()
        with anyio.fail_after(5):
            await runtime.undone.wait()
            while server.in_flight:
                await anyio.sleep(0.005)


async def test_a_lost_connection_cancels_its_calls_and_no_others(tmp_path: Path) -> None:
    runtime, other = Runtime(), Runtime()
    async with serving(tmp_path, runtime) as (server, cri):
        async with connect(tmp_path / "cri.sock", timeout=20) as leaving, anyio.create_task_group() as group:

            async def left() -> None:
                with pytest.raises(CriError) as info:
                    await leaving.runtime.start_container()
                assert info.value.code is Status.UNAVAILABLE

            group.start_soon(left)
            group.start_soon(cri.runtime.start_container)
            while server.in_flight < 2:
                await anyio.sleep(0.005)
            leaving.runtime._channel.close()
            with anyio.fail_after(5):
                await runtime.undone.wait()
            assert server.in_flight == 1
            runtime.hold.set()
    assert not other.entered


async def test_three_hundred_long_calls_hold_nobody_up(tmp_path: Path) -> None:
    runtime = Runtime()
    async with serving(tmp_path, runtime) as (server, cri), foreign(tmp_path) as call:
        async with anyio.create_task_group() as group:
            for _ in range(300):
                group.start_soon(call, "StartContainer")
                group.start_soon(cri.runtime.start_container)
            with anyio.fail_after(20):
                while server.in_flight < 600:
                    await anyio.sleep(0.005)
            with anyio.fail_after(2):
                assert (await cri.runtime.version(pb.VersionRequest(version="now"))).version == "now"
                await call("Version")
            runtime.hold.set()
    assert MAX_STREAMS >= 1000


async def test_streams_arrive_one_by_one_and_close_their_generator(tmp_path: Path) -> None:
    runtime = Runtime()
    async with serving(tmp_path, runtime) as (server, cri):
        events = cri.runtime.get_container_events()
        assert [(await anext(events)).container_id for _ in range(3)] == ["0", "1", "2"]
        assert not runtime.closed_streams.is_set()
        await events.aclose()
        with anyio.fail_after(5):
            await runtime.closed_streams.wait()
            while server.in_flight:
                await anyio.sleep(0.005)
        runtime.hold.set()
        assert len([event async for event in cri.runtime.get_container_events()]) == 3
        runtime.failure = errors.LimitExceeded("fell behind")
        seen: list[str] = []

        async def listen() -> None:
            async for event in cri.runtime.get_container_events():
                seen.append(event.container_id)  # noqa: PERF401 - what came before the failure counts

        with pytest.raises(CriError, match="fell behind"):
            await listen()
        assert seen == ["0", "1", "2"]


async def test_closing_lets_calls_finish_within_the_grace_period(tmp_path: Path) -> None:
    runtime = Runtime()
    async with serving(tmp_path, runtime) as (server, cri), anyio.create_task_group() as group:
        answers: list[object] = []

        async def long_call() -> None:
            answers.append(await cri.runtime.start_container())

        async def listener() -> None:
            with pytest.raises(CriError) as info:
                async for _ in cri.runtime.get_container_events():
                    pass
            assert info.value.code is Status.UNAVAILABLE
            with pytest.raises(CriError) as info:
                await cri.runtime.version()
            assert info.value.code is Status.UNAVAILABLE
            with pytest.raises(CriError, match="no server answers"):
                async with connect(tmp_path / "cri.sock"):
                    pass
            runtime.hold.set()

        group.start_soon(long_call)
        group.start_soon(listener)
        while server.in_flight < 2:
            await anyio.sleep(0.005)
        with anyio.fail_after(10):
            await server.close(grace=30)
    assert answers == [pb.StartContainerResponse()]


async def test_closing_cancels_what_outlasts_the_grace_period(tmp_path: Path) -> None:
    runtime = Runtime()
    async with serving(tmp_path, runtime) as (server, cri), anyio.create_task_group() as group:

        async def long_call() -> None:
            with pytest.raises(CriError, match="shutting down") as info:
                await cri.runtime.start_container()
            assert info.value.code is Status.UNAVAILABLE

        group.start_soon(long_call)
        while not server.in_flight:
            await anyio.sleep(0.005)
        await server.close(grace=0.01)
        assert runtime.undone.is_set()
    assert not (tmp_path / "cri.sock").exists()


async def test_debug_log_has_code_and_duration(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(tmp_path, Runtime()) as (_, cri):
        with caplog.at_level(logging.DEBUG, "bridge.api"):
            await cri.runtime.version()
    assert any("/Version OK in " in record.getMessage() for record in caplog.records)


def test_services_that_take_streams_are_refused() -> None:
    class Odd(pb.RuntimeServiceBase):
        def __mapping__(self) -> Any:
            found = super().__mapping__()
            path, handler = next(iter(found.items()))
            from grpclib.const import Cardinality

            return {path: handler._replace(cardinality=Cardinality.STREAM_UNARY)}

    with pytest.raises(TypeError, match="stream of requests"):
        GrpcServer([Odd()])
