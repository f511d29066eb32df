"""The pod sandbox RPCs: convert, call core, convert."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from bridge._proto.runtime import v1
from bridge.api import chunks, convert, convert_config, convert_parts, encoding, info
from bridge.api.pieces import Pieces, revision
from bridge.api.snapshots import Snapshots
from bridge.core.services import Services


class SandboxRpcs(v1.RuntimeServiceBase):
    """RunPodSandbox, StopPodSandbox, RemovePodSandbox, PodSandboxStatus, ListPodSandbox, StreamPodSandboxes, CheckpointPod, RestorePod,
    UpdatePodSandboxResources."""

    def __init__(self, core: Services, snapshots: Snapshots) -> None:
        self._core = core
        self._snapshots = snapshots
        self._sandbox_pieces = Pieces(convert.pod_sandbox, revision)

    async def run_pod_sandbox(self, message: v1.RunPodSandboxRequest) -> v1.RunPodSandboxResponse:
        """Make the pod's sandbox; the retry of a request that was given up joins it."""
        sandbox = await self._core.sandboxes.run(convert_config.pod_config(message.config), message.runtime_handler)
        return v1.RunPodSandboxResponse(pod_sandbox_id=sandbox.id)

    async def stop_pod_sandbox(self, message: v1.StopPodSandboxRequest) -> v1.StopPodSandboxResponse:
        """Absent is success."""
        await self._core.sandboxes.stop(message.pod_sandbox_id)
        return v1.StopPodSandboxResponse()

    async def remove_pod_sandbox(self, message: v1.RemovePodSandboxRequest) -> v1.RemovePodSandboxResponse:
        """Absent is success."""
        await self._core.sandboxes.remove(message.pod_sandbox_id)
        return v1.RemovePodSandboxResponse()

    async def pod_sandbox_status(self, message: v1.PodSandboxStatusRequest) -> v1.PodSandboxStatusResponse:
        """From memory, with its containers at one moment, for evented PLEG; ``info`` only when verbose."""
        sandbox = self._core.sandboxes.find(message.pod_sandbox_id)
        details = info.of_sandbox(sandbox, self._core) if message.verbose else {}
        return self._snapshots.status(sandbox, self._core.events.members(sandbox.id), self._core.events.now(), details)

    async def checkpoint_pod(self, message: v1.CheckpointPodRequest) -> v1.CheckpointPodResponse:
        """Belongs to this call; the pod goes on afterwards."""
        chosen, options = message.container_ids, message.options
        await self._core.pod_checkpoints.checkpoint(message.pod_sandbox_id, message.output_path, chosen, options)
        return v1.CheckpointPodResponse()

    async def restore_pod(self, message: v1.RestorePodRequest) -> v1.RestorePodResponse:
        """A new pod, whose containers run."""
        config = None if message.config is None else convert_config.pod_config(message.config)
        changes = [convert_config.container_config(each, f"container_configs[{at}]") for at, each in enumerate(message.container_configs)]
        service, handler = self._core.pod_checkpoints, message.runtime_handler
        sandbox, made = await service.restore(message.checkpoint_path, config, handler, message.options, changes)
        restored = [v1.RestoredContainer(name=each.config.metadata.name, container_id=each.id) for each in made]
        return v1.RestorePodResponse(pod_sandbox_id=sandbox.id, restored_containers=restored)

    async def update_pod_sandbox_resources(self, message: v1.UpdatePodSandboxResourcesRequest) -> v1.UpdatePodSandboxResourcesResponse:
        """The pod's cgroup itself is the kubelet's to change, unless the server made it."""
        overhead, resources = convert_parts.resources(message.overhead, "overhead"), convert_parts.resources(message.resources, "resources")
        await self._core.resources.update_sandbox(message.pod_sandbox_id, overhead, resources)
        return v1.UpdatePodSandboxResourcesResponse()

    async def list_pod_sandbox(self, message: v1.ListPodSandboxRequest) -> v1.ListPodSandboxResponse:
        """From memory, encoded pieces joined."""
        return encoding.ready(v1.ListPodSandboxResponse, self._listed_sandboxes(message.filter))

    def stream_pod_sandboxes(self, message: v1.StreamPodSandboxesRequest) -> AsyncIterator[v1.StreamPodSandboxesResponse]:
        """The list in several messages: what there was when the call came."""
        return chunks.stream(v1.StreamPodSandboxesResponse, self._listed_sandboxes(message.filter))

    def _listed_sandboxes(self, condition: v1.PodSandboxFilter | None) -> Iterator[bytes]:
        wanted = convert.sandbox_filter(condition)
        found = self._core.sandboxes.list(wanted.id, wanted.ready, wanted.labels)
        return self._sandbox_pieces.of(found, len(self._core.store.sandboxes))
