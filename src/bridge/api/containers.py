"""The container RPCs: convert, call core, convert."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from bridge._proto.runtime import v1
from bridge.api import chunks, convert, convert_config, convert_parts, encoding, info
from bridge.api.pieces import Pieces, revision
from bridge.core.services import Services


class ContainerRpcs(v1.RuntimeServiceBase):
    """Create, Start, Stop, Remove, Status, List and Stream of containers, UpdateContainerResources, ExecSync, CheckpointContainer,
    ReopenContainerLog."""

    def __init__(self, core: Services) -> None:
        self._core = core
        self._container_pieces = Pieces(convert.container, revision)

    async def create_container(self, message: v1.CreateContainerRequest) -> v1.CreateContainerResponse:
        """Make a container; the retry of a request that was given up joins it."""
        container = await self._core.containers.create(message.pod_sandbox_id, convert_config.container_config(message.config))
        return v1.CreateContainerResponse(container_id=container.id)

    async def start_container(self, message: v1.StartContainerRequest) -> v1.StartContainerResponse:
        """Only a created container can be started."""
        await self._core.containers.start(message.container_id)
        return v1.StartContainerResponse()

    async def stop_container(self, message: v1.StopContainerRequest) -> v1.StopContainerResponse:
        """Absent is success; a shorter timeout shortens a stop that runs."""
        await self._core.containers.stop(message.container_id, message.timeout)
        return v1.StopContainerResponse()

    async def remove_container(self, message: v1.RemoveContainerRequest) -> v1.RemoveContainerResponse:
        """Absent is success."""
        await self._core.containers.remove(message.container_id)
        return v1.RemoveContainerResponse()

    async def container_status(self, message: v1.ContainerStatusRequest) -> v1.ContainerStatusResponse:
        """From memory; ``info`` only when verbose."""
        container = self._core.containers.find(message.container_id)
        details = await info.of_container(container, self._core) if message.verbose else {}
        return v1.ContainerStatusResponse(status=convert.container_status(container), info=details)

    async def list_containers(self, message: v1.ListContainersRequest) -> v1.ListContainersResponse:
        """From memory, encoded pieces joined."""
        return encoding.ready(v1.ListContainersResponse, self._listed_containers(message.filter))

    def stream_containers(self, message: v1.StreamContainersRequest) -> AsyncIterator[v1.StreamContainersResponse]:
        """The list in several messages: what there was when the call came."""
        return chunks.stream(v1.StreamContainersResponse, self._listed_containers(message.filter))

    def _listed_containers(self, condition: v1.ContainerFilter | None) -> Iterator[bytes]:
        wanted = convert.container_filter(condition)
        found = self._core.containers.list(wanted.id, wanted.sandbox_id, wanted.states, wanted.labels)
        return self._container_pieces.of(found, len(self._core.store.containers))

    async def exec_sync(self, message: v1.ExecSyncRequest) -> v1.ExecSyncResponse:
        """Run a command and collect its output; belongs to this call."""
        result = await self._core.execs.run(message.container_id, message.cmd, message.timeout)
        return v1.ExecSyncResponse(stdout=result.stdout, stderr=result.stderr, exit_code=result.exit_code)

    async def update_container_resources(self, message: v1.UpdateContainerResourcesRequest) -> v1.UpdateContainerResourcesResponse:
        """What is 0 stays as it is. Annotations are for extensions of the node, of which there are none yet."""
        convert_parts.linux_only(message.windows, "windows")
        await self._core.resources.update_container(message.container_id, convert_parts.resources(message.linux, "linux"))
        return v1.UpdateContainerResourcesResponse()

    async def checkpoint_container(self, message: v1.CheckpointContainerRequest) -> v1.CheckpointContainerResponse:
        """Belongs to this call; the container goes on afterwards."""
        await self._core.checkpoints.container(message.container_id, message.location, message.timeout)
        return v1.CheckpointContainerResponse()

    async def reopen_container_log(self, message: v1.ReopenContainerLogRequest) -> v1.ReopenContainerLogResponse:
        """After the kubelet rotated the log file."""
        await self._core.containers.reopen_log(message.container_id)
        return v1.ReopenContainerLogResponse()
