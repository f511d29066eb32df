"""A typed async CRI client on grpclib: for scripts, tests, the demo and the command line.

::

    async with connect("/run/cri-bridge/cri.sock") as cri:
        answer = await cri.runtime.run_pod_sandbox(RunPodSandboxRequest(config=config))
        async for event in cri.runtime.get_container_events():
            ...

Requests and answers are the generated classes of ``bridge._proto.runtime.v1``. It works with any CRI server.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import anyio
from betterproto2 import Message
from grpclib.client import Channel, Stream
from grpclib.const import Cardinality, Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from bridge._proto.bridge.admin import v1 as admin
from bridge._proto.runtime import v1 as pb
from bridge.api.encoding import WireCodec
from bridge.errors import BridgeError

Q = TypeVar("Q", bound=Message)
A = TypeVar("A", bound=Message)


class CriError(BridgeError):
    """The server's answer is an error, or there is none. ``code`` is the gRPC status, ``message`` the server's words."""

    def __init__(self, code: Status, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"


class Service:
    """Base of the services of a connected client. ``path`` is the service's, as gRPC knows it."""

    path = ""

    def __init__(self, channel: Channel, timeout: float) -> None:
        self._channel = channel
        self._timeout = timeout

    @asynccontextmanager
    async def open(self, rpc: _Rpc[Q, A], cardinality: Cardinality, timeout: float | None) -> AsyncIterator[Stream[Q, A]]:
        """A stream for one call of ``rpc``, with every failure as a CriError. ``timeout`` in seconds; None: no limit."""
        try:
            name = f"{self.path}/{rpc.name}"
            async with self._channel.request(name, cardinality, rpc.request_type, rpc.answer_type, timeout=timeout) as stream:
                yield stream
        except GRPCError as exc:
            raise CriError(exc.status, exc.message or "") from exc
        except TimeoutError as exc:
            raise CriError(Status.DEADLINE_EXCEEDED, f"{rpc.name} was not answered within {timeout} s") from exc
        except (OSError, StreamTerminatedError) as exc:
            raise CriError(Status.UNAVAILABLE, f"the connection to the server is lost: {exc}") from exc

    @property
    def timeout(self) -> float:
        """Seconds that a call without a timeout of its own may take."""
        return self._timeout


class _Rpc(Generic[Q, A]):
    def __init__(self, name: str, request_type: type[Q], answer_type: type[A]) -> None:
        self.name = name
        self.request_type = request_type
        self.answer_type = answer_type


class Unary(_Rpc[Q, A]):
    """Declares, in a service's class, an RPC with one answer."""

    def __get__(self, service: Service, owner: type[Service]) -> UnaryCall[Q, A]:
        return UnaryCall(service, self)


class Streaming(_Rpc[Q, A]):
    """Declares, in a service's class, an RPC with a stream of answers."""

    def __get__(self, service: Service, owner: type[Service]) -> StreamingCall[Q, A]:
        return StreamingCall(service, self)


class UnaryCall(Generic[Q, A]):
    """An RPC of a connected service, ready to be called."""

    def __init__(self, service: Service, rpc: Unary[Q, A]) -> None:
        self._service = service
        self._rpc = rpc

    async def __call__(self, request: Q | None = None, *, timeout: float | None = None) -> A:
        """The answer to ``request`` (default: an empty one) within ``timeout`` seconds (default: the client's). Raises CriError."""
        limit = self._service.timeout if timeout is None else timeout
        async with self._service.open(self._rpc, Cardinality.UNARY_UNARY, limit) as stream:
            await stream.send_message(self._rpc.request_type() if request is None else request, end=True)
            answer = await stream.recv_message()
        if answer is None:
            raise CriError(Status.INTERNAL, "the server sent no answer")
        return answer


class StreamingCall(Generic[Q, A]):
    """A streaming RPC of a connected service, ready to be called."""

    def __init__(self, service: Service, rpc: Streaming[Q, A]) -> None:
        self._service = service
        self._rpc = rpc

    async def __call__(self, request: Q | None = None, *, timeout: float | None = None) -> AsyncGenerator[A, None]:
        """The answers to ``request``, one by one; ``timeout`` in seconds bounds them all together, None: endless. Raises CriError.

        Leave early only within ``contextlib.aclosing``: then the server is told at once.
        """
        async with self._service.open(self._rpc, Cardinality.UNARY_STREAM, timeout) as stream:
            await stream.send_message(self._rpc.request_type() if request is None else request, end=True)
            async for answer in stream:
                yield answer


class RuntimeService(Service):
    """Pods, containers and the runtime itself (proto/runtime/v1)."""

    path = "/runtime.v1.RuntimeService"

    version = Unary("Version", pb.VersionRequest, pb.VersionResponse)
    run_pod_sandbox = Unary("RunPodSandbox", pb.RunPodSandboxRequest, pb.RunPodSandboxResponse)
    stop_pod_sandbox = Unary("StopPodSandbox", pb.StopPodSandboxRequest, pb.StopPodSandboxResponse)
    remove_pod_sandbox = Unary("RemovePodSandbox", pb.RemovePodSandboxRequest, pb.RemovePodSandboxResponse)
    pod_sandbox_status = Unary("PodSandboxStatus", pb.PodSandboxStatusRequest, pb.PodSandboxStatusResponse)
    list_pod_sandbox = Unary("ListPodSandbox", pb.ListPodSandboxRequest, pb.ListPodSandboxResponse)
    stream_pod_sandboxes = Streaming("StreamPodSandboxes", pb.StreamPodSandboxesRequest, pb.StreamPodSandboxesResponse)
    create_container = Unary("CreateContainer", pb.CreateContainerRequest, pb.CreateContainerResponse)
    start_container = Unary("StartContainer", pb.StartContainerRequest, pb.StartContainerResponse)
    stop_container = Unary("StopContainer", pb.StopContainerRequest, pb.StopContainerResponse)
    remove_container = Unary("RemoveContainer", pb.RemoveContainerRequest, pb.RemoveContainerResponse)
    list_containers = Unary("ListContainers", pb.ListContainersRequest, pb.ListContainersResponse)
    stream_containers = Streaming("StreamContainers", pb.StreamContainersRequest, pb.StreamContainersResponse)
    container_status = Unary("ContainerStatus", pb.ContainerStatusRequest, pb.ContainerStatusResponse)
    update_container_resources = Unary("UpdateContainerResources", pb.UpdateContainerResourcesRequest, pb.UpdateContainerResourcesResponse)
    reopen_container_log = Unary("ReopenContainerLog", pb.ReopenContainerLogRequest, pb.ReopenContainerLogResponse)
    exec_sync = Unary("ExecSync", pb.ExecSyncRequest, pb.ExecSyncResponse)
    exec = Unary("Exec", pb.ExecRequest, pb.ExecResponse)
    attach = Unary("Attach", pb.AttachRequest, pb.AttachResponse)
    port_forward = Unary("PortForward", pb.PortForwardRequest, pb.PortForwardResponse)
    container_stats = Unary("ContainerStats", pb.ContainerStatsRequest, pb.ContainerStatsResponse)
    list_container_stats = Unary("ListContainerStats", pb.ListContainerStatsRequest, pb.ListContainerStatsResponse)
    stream_container_stats = Streaming("StreamContainerStats", pb.StreamContainerStatsRequest, pb.StreamContainerStatsResponse)
    pod_sandbox_stats = Unary("PodSandboxStats", pb.PodSandboxStatsRequest, pb.PodSandboxStatsResponse)
    list_pod_sandbox_stats = Unary("ListPodSandboxStats", pb.ListPodSandboxStatsRequest, pb.ListPodSandboxStatsResponse)
    stream_pod_sandbox_stats = Streaming("StreamPodSandboxStats", pb.StreamPodSandboxStatsRequest, pb.StreamPodSandboxStatsResponse)
    update_runtime_config = Unary("UpdateRuntimeConfig", pb.UpdateRuntimeConfigRequest, pb.UpdateRuntimeConfigResponse)
    status = Unary("Status", pb.StatusRequest, pb.StatusResponse)
    checkpoint_container = Unary("CheckpointContainer", pb.CheckpointContainerRequest, pb.CheckpointContainerResponse)
    checkpoint_pod = Unary("CheckpointPod", pb.CheckpointPodRequest, pb.CheckpointPodResponse)
    restore_pod = Unary("RestorePod", pb.RestorePodRequest, pb.RestorePodResponse)
    get_container_events = Streaming("GetContainerEvents", pb.GetEventsRequest, pb.ContainerEventResponse)
    list_metric_descriptors = Unary("ListMetricDescriptors", pb.ListMetricDescriptorsRequest, pb.ListMetricDescriptorsResponse)
    list_pod_sandbox_metrics = Unary("ListPodSandboxMetrics", pb.ListPodSandboxMetricsRequest, pb.ListPodSandboxMetricsResponse)
    stream_pod_sandbox_metrics = Streaming("StreamPodSandboxMetrics", pb.StreamPodSandboxMetricsRequest, pb.StreamPodSandboxMetricsResponse)
    runtime_config = Unary("RuntimeConfig", pb.RuntimeConfigRequest, pb.RuntimeConfigResponse)
    update_pod_sandbox_resources = Unary(
        "UpdatePodSandboxResources", pb.UpdatePodSandboxResourcesRequest, pb.UpdatePodSandboxResourcesResponse
    )


class ImageService(Service):
    """Images (proto/runtime/v1)."""

    path = "/runtime.v1.ImageService"

    list_images = Unary("ListImages", pb.ListImagesRequest, pb.ListImagesResponse)
    stream_images = Streaming("StreamImages", pb.StreamImagesRequest, pb.StreamImagesResponse)
    image_status = Unary("ImageStatus", pb.ImageStatusRequest, pb.ImageStatusResponse)
    pull_image = Unary("PullImage", pb.PullImageRequest, pb.PullImageResponse)
    remove_image = Unary("RemoveImage", pb.RemoveImageRequest, pb.RemoveImageResponse)
    image_fs_info = Unary("ImageFsInfo", pb.ImageFsInfoRequest, pb.ImageFsInfoResponse)


class AdminService(Service):
    """What only cri-bridge offers (proto/bridge/admin/v1)."""

    path = "/bridge.admin.v1.Admin"

    import_image = Unary("ImportImage", admin.ImportImageRequest, admin.ImportImageResponse)
    trace = Unary("Trace", admin.TraceRequest, admin.TraceResponse)
    handlers = Unary("Handlers", admin.HandlersRequest, admin.HandlersResponse)
    preview_spec = Unary("PreviewSpec", admin.PreviewSpecRequest, admin.PreviewSpecResponse)
    collect_garbage = Unary("CollectGarbage", admin.CollectGarbageRequest, admin.CollectGarbageResponse)
    remove_orphans = Unary("RemoveOrphans", admin.RemoveOrphansRequest, admin.RemoveOrphansResponse)
    list_images = Unary("ListImages", admin.ListImagesRequest, admin.ListImagesResponse)
    inspect_image = Unary("InspectImage", admin.InspectImageRequest, admin.InspectImageResponse)
    pull_image = Streaming("PullImage", admin.PullImageRequest, admin.PullImageResponse)
    import_images = Streaming("ImportImages", admin.ImportImageRequest, admin.ImportImagesResponse)
    export_images = Streaming("ExportImages", admin.ExportImagesRequest, admin.ExportImagesResponse)
    check_images = Unary("CheckImages", admin.CheckImagesRequest, admin.CheckImagesResponse)
    verify_images = Streaming("VerifyImages", admin.CheckImagesRequest, admin.VerifyImagesResponse)
    prune_images = Unary("PruneImages", admin.PruneImagesRequest, admin.PruneImagesResponse)


@dataclasses.dataclass(frozen=True, slots=True)
class CriClient:
    """A connection to a CRI server."""

    runtime: RuntimeService
    image: ImageService
    admin: AdminService


@asynccontextmanager
async def connect(socket_path: str | os.PathLike[str], *, timeout: float = 120.0, wait: float = 0.0) -> AsyncIterator[CriClient]:
    """A client of the server on ``socket_path``, closed at the block's end.

    ``timeout``: seconds that a call may take unless told otherwise. ``wait``: seconds to keep trying until somebody
    listens. Raises CriError (UNAVAILABLE) when nobody does.
    """
    channel = Channel(path=os.fspath(socket_path), codec=WireCodec())
    try:
        await _reach(channel, os.fspath(socket_path), wait)
        yield CriClient(RuntimeService(channel, timeout), ImageService(channel, timeout), AdminService(channel, timeout))
    finally:
        channel.close()


async def _reach(channel: Channel, path: str, wait: float) -> None:
    give_up = anyio.current_time() + wait
    while True:
        try:
            await channel.__connect__()
        except OSError as exc:
            if anyio.current_time() >= give_up:
                raise CriError(Status.UNAVAILABLE, f"no server answers on {path}: {exc.strerror or exc}") from exc
        else:
            return
        await anyio.sleep(0.02)
