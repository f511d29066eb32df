"""The RPCs about the runtime itself: Version, Status, RuntimeConfig. And the whole RuntimeService, put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bridge import __version__
from bridge._proto.runtime import v1
from bridge.api.containers import ContainerRpcs
from bridge.api.events import EventRpcs
from bridge.api.metrics import MetricsRpcs
from bridge.api.sandboxes import SandboxRpcs
from bridge.api.stats import StatsRpcs
from bridge.api.streaming import StreamingRpcs, Urls
from bridge.core.services import Services
from bridge.ports.handlers import HandlerState
from bridge.ports.runtime import Ability, RuntimeFeatures

RUNTIME_NAME = "cri-bridge"
API_VERSION = "v1"
_KUBELET_VERSION = "0.1.0"  # what every runtime answers in VersionResponse.version: the version of the kubelet's own API


@dataclass(frozen=True, slots=True)
class NodeView:
    """What Status tells of the node. ``health`` gives ("", "") or why the runtime is not ready: reason and message.

    ``mount_copies`` tells that the server itself can make a whole tree of mounts read-only, whatever the handler can.
    """

    systemd_cgroups: bool
    mount_copies: bool
    health: Callable[[], tuple[str, str]]
    details: Callable[[], Mapping[str, str]]


class RuntimeRpcs(SandboxRpcs, ContainerRpcs, StreamingRpcs, StatsRpcs, MetricsRpcs, EventRpcs):
    """The RuntimeService. RPCs that no class here overrides answer UNIMPLEMENTED."""

    def __init__(self, core: Services, node: NodeView, urls: Urls) -> None:
        EventRpcs.__init__(self, core)
        SandboxRpcs.__init__(self, core, self._snapshots)
        ContainerRpcs.__init__(self, core)
        StatsRpcs.__init__(self, core)
        StreamingRpcs.__init__(self, core, urls)
        self._node = node

    async def version(self, message: v1.VersionRequest) -> v1.VersionResponse:
        """Who we are."""
        del message
        return v1.VersionResponse(
            version=_KUBELET_VERSION, runtime_name=RUNTIME_NAME, runtime_version=__version__, runtime_api_version=API_VERSION
        )

    async def status(self, message: v1.StatusRequest) -> v1.StatusResponse:
        """Conditions and handlers, from memory."""
        states = self._core.ports.handlers.states()
        return v1.StatusResponse(
            status=v1.RuntimeStatus(conditions=[self._runtime_ready(), self._network_ready()]),
            info=dict(self._node.details()) if message.verbose else {},
            runtime_handlers=self._handlers(states),
            features=v1.RuntimeFeatures(supplemental_groups_policy=True, mount_options=True),
        )

    def _runtime_ready(self) -> v1.RuntimeCondition:
        reason, text = self._node.health()
        return v1.RuntimeCondition(type="RuntimeReady", status=not reason, reason=reason, message=text)

    def _network_ready(self) -> v1.RuntimeCondition:
        status = self._core.ports.network.status()
        return v1.RuntimeCondition(type="NetworkReady", status=status.ready, reason=status.reason, message=status.message)

    async def runtime_config(self, message: v1.RuntimeConfigRequest) -> v1.RuntimeConfigResponse:
        """The cgroup driver that the kubelet is to follow."""
        del message
        driver = v1.CgroupDriver.SYSTEMD if self._node.systemd_cgroups else v1.CgroupDriver.CGROUPFS
        return v1.RuntimeConfigResponse(linux=v1.LinuxRuntimeConfiguration(cgroup_driver=driver))

    async def update_runtime_config(self, message: v1.UpdateRuntimeConfigRequest) -> v1.UpdateRuntimeConfigResponse:
        """The node's pod ranges, of which the network may be made. Nothing else can be configured this way."""
        network = message.runtime_config.network_config if message.runtime_config else None
        await self._core.ports.network.use_ranges(network.pod_cidr if network else "")
        return v1.UpdateRuntimeConfigResponse()

    def _handlers(self, states: Sequence[HandlerState]) -> list[v1.RuntimeHandler]:
        found = [v1.RuntimeHandler(name=state.name, features=self._features(state.features)) for state in states if state.features]
        # A kubelet looks the default handler up under the empty name (KEP-3857).
        default = [handler for handler in found if handler.name == self._core.ports.handlers.default]
        return found + [v1.RuntimeHandler(name="", features=handler.features) for handler in default]

    def _features(self, features: RuntimeFeatures) -> v1.RuntimeHandlerFeatures:
        """What the handler has and the node has for it: mounts with other attributes, image files as a user namespace sees them."""
        return v1.RuntimeHandlerFeatures(
            recursive_read_only_mounts=self._node.mount_copies or features.has(Ability.RECURSIVE_READ_ONLY),
            user_namespaces=not self._core.ports.images.id_mapping_fault and features.has(Ability.USER_NAMESPACES),
        )
