"""The pod network by CNI plugins: ADD, CHECK and DEL of attachments, GC of leftovers, and whether the network is ready.

An attachment carries its own configuration, so DEL works after any crash and whatever became of the files. What a verb
needs on the request path is in memory; only the plugins themselves are waited for.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio

from bridge import log
from bridge.aio import Supervisor
from bridge.errors import NetworkFailed, Unavailable, Unsupported
from bridge.network.attachments import AttachmentRecord
from bridge.network.capabilities import arguments_text, capability_arguments
from bridge.network.conf import NetworkConf, PluginConf, at_least
from bridge.network.invoke import AttachmentParameters, Invoker, base_environment, request_configuration
from bridge.network.pod_ranges import parse_ranges, write_configuration
from bridge.network.results import BadAnswer, pod_ips
from bridge.network.source import NetworkSource
from bridge.network.turns import Turns, claim
from bridge.ports.network import Attachment, NetworkStatus, PodNetwork, PodNetworkRequest

_IFNAME = "eth0"  # what every Kubernetes runtime calls the pod's interface
_NOT_READY = "NetworkPluginNotReady"  # the reason that kubelets and operators know
_logger = log.get("network")


@dataclass(frozen=True, slots=True)
class CniSettings:
    """Where to look and how long to wait. Times are in seconds, each plugin and verb by itself."""

    conf_dir: Path = Path("/etc/cni/net.d")
    bin_dirs: Sequence[Path] = (Path("/opt/cni/bin"), Path("/usr/lib/cni"))
    plugin_timeout: float = 60.0
    status_timeout: float = 10.0
    status_interval: float = 10.0
    """Pause between two runs of the STATUS verb."""
    conf_template: Path | None = None
    """What the configuration is made of when the kubelet tells the node's pod ranges and there is none."""
    pod_cidrs: Sequence[str] = ()
    """The node's pod ranges for plugins with the ipRanges capability."""
    host_port_plugins: Sequence[str] = ()
    """Types of plugins that serve host ports without the capability portMappings."""
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))


class Cni:
    """Implements ports.network.Network. Made by ``Cni.open``."""

    def __init__(self, settings: CniSettings) -> None:
        self._settings = settings
        self._invoker = Invoker(base_environment(settings.environment, settings.bin_dirs))
        self._source = NetworkSource(settings.conf_dir, settings.bin_dirs, self._invoker)
        self._turns = Turns()
        self._known: set[tuple[str, str, str]] = set()
        self._plugin_fault = ""
        self._ranges = anyio.Lock()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, settings: CniSettings, supervisor: Supervisor) -> AsyncIterator[Cni]:
        """A Cni whose status is known; its background tasks run in ``supervisor`` until the block is left."""
        cni = cls(settings)
        await cni._source.refresh()
        scope, ended = anyio.CancelScope(), anyio.Event()
        supervisor.spawn("cni", lambda: cni._run(scope, ended))
        try:
            yield cni
        finally:
            scope.cancel()
            with anyio.CancelScope(shield=True):
                await ended.wait()

    def status(self) -> NetworkStatus:
        """From memory. The message names skipped files also when the network is ready."""
        snapshot = self._source.snapshot
        fault = snapshot.fault or self._plugin_fault
        if fault:
            return NetworkStatus(ready=False, reason=_NOT_READY, message=fault)
        return NetworkStatus(ready=True, message="; ".join(f"skipped {problem}" for problem in snapshot.skipped))

    async def use_ranges(self, ranges: str) -> None:
        """See the port. An empty ``ranges`` changes nothing, as does one for which there is no template."""
        parsed = parse_ranges(ranges)
        if not parsed:
            return
        settings = self._settings
        if settings.conf_template is None:
            _logger.info("pod ranges %s: network.conf_template is not set, an add-on is to bring the CNI configuration", ranges)
            return
        async with self._ranges:
            if await write_configuration(parsed, settings.conf_template, settings.conf_dir, settings.bin_dirs):
                await self._source.refresh()

    def plan(self, request: PodNetworkRequest) -> Attachment:
        """Choose the configuration and the arguments, touching nothing. Raises Unavailable, InvalidRequest or Unsupported."""
        snapshot = self._source.snapshot
        if snapshot.fault or snapshot.network is None:
            raise Unavailable(f"the pod network is not ready: {snapshot.fault}")
        conf = snapshot.network
        capabilities = capability_arguments(request, self._settings.pod_cidrs)
        if "portMappings" in capabilities:
            self._require_host_ports(conf)
        wanted = {key: value for key, value in capabilities.items() if conf.supports(key)}
        parameters = AttachmentParameters(request.sandbox_id, str(request.netns), _IFNAME, arguments_text(request))
        return AttachmentRecord(conf, parameters, wanted).to_attachment()

    def _require_host_ports(self, conf: NetworkConf) -> None:
        """A port that nobody maps would look well and answer nobody."""
        own = self._settings.host_port_plugins
        if not conf.supports("portMappings") and not any(plugin.type in own for plugin in conf.plugins):
            raise Unsupported(
                f"config.port_mappings: no plugin of network {conf.name!r} ({conf.source}) has the capability portMappings: add portmap "
                f"to it, or name the plugin that serves host ports by itself in network.host_port_plugins ({', '.join(own) or 'none'})"
            )

    async def add(self, attachment: Attachment) -> PodNetwork:
        """CNI ADD of every plugin in order. On failure, or cancellation, the caller deletes. Raises NetworkFailed."""
        record = AttachmentRecord.from_attachment(attachment)
        conf, result = record.conf, None
        async with self._turn(record) as parameters:
            self._known.add(record.key)
            for plugin in conf.plugins:
                result = await self._invoker.add(
                    plugin,
                    self._binary(conf, plugin),
                    self._stdin(record, plugin, result),
                    network=conf.name,
                    version=conf.version,
                    timeout=self._settings.plugin_timeout,
                    parameters=parameters,
                )
        assert result is not None  # a network has at least one plugin
        try:
            ips = pod_ips(result, record.parameters.ifname)
        except BadAnswer as exc:
            raise NetworkFailed(f"network {conf.name!r}: CNI plugin {conf.plugins[-1].type!r}: ADD ended well, but {exc}") from exc
        if not ips:
            raise NetworkFailed(f"network {conf.name!r}: its plugins gave the pod's {record.parameters.ifname} no IP address")
        return PodNetwork(ips, record.with_result(result).to_attachment())

    async def check(self, attachment: Attachment) -> None:
        """CNI CHECK of every plugin, where the network has it (≥ 0.4.0, not disabled). Raises NetworkFailed."""
        record = AttachmentRecord.from_attachment(attachment)
        if record.conf.disable_check or not at_least(record.conf.version, "0.4.0"):
            return
        if record.result is None:
            raise NetworkFailed(f"network {record.conf.name!r}: {record.parameters.container_id} was never attached")
        async with self._turn(record) as parameters:
            for plugin in record.conf.plugins:
                await self._call("CHECK", record, plugin, record.result, parameters)

    async def delete(self, attachment: Attachment) -> None:
        """CNI DEL of every plugin in reverse order; what was never added or is gone already is success. Raises NetworkFailed.

        It stops at the first failure, as section 3 asks: were the address freed while, say, a port mapping to it stays, the
        next pod with that address would get another pod's traffic. The caller repeats the whole DEL.
        """
        record = AttachmentRecord.from_attachment(attachment)
        previous = record.result if at_least(record.conf.version, "0.4.0") else None
        async with self._turn(record) as parameters:
            if parameters.claim is None:
                parameters = replace(parameters, netns="")
            for plugin in reversed(record.conf.plugins):
                await self._call("DEL", record, plugin, previous, parameters)
            self._known.discard(record.key)

    async def collect(self, keep: Sequence[Attachment]) -> None:
        """CNI GC of the current network, where it has it (≥ 1.1.0, not disabled); waits until no ADD or DEL runs.

        Attachments made since ``keep`` was drawn up are kept too. Every plugin is asked. Raises NetworkFailed with all failures.
        """
        conf = self._source.snapshot.network
        if conf is None or conf.disable_gc or not at_least(conf.version, "1.1.0"):
            return
        failures = []
        async with self._turns.collection():
            kept = {AttachmentRecord.from_attachment(attachment).key for attachment in keep} | self._known
            valid = [{"containerID": container, "ifname": ifname} for network, container, ifname in sorted(kept) if network == conf.name]
            # The second key is the name that plugins built with libcni 1.2.0 to 1.2.2 read.
            extra = {"cni.dev/valid-attachments": valid, "cni.dev/attachments": valid}
            for plugin in conf.plugins:
                try:
                    stdin = request_configuration(plugin, network=conf.name, version=conf.version, extra=extra)
                    await self._run_verb("GC", conf, plugin, stdin, self._settings.plugin_timeout)
                except NetworkFailed as exc:
                    failures.append(exc)
        if failures:
            raise NetworkFailed("; ".join(failure.message for failure in failures)) from failures[0]

    async def _run(self, scope: anyio.CancelScope, ended: anyio.Event) -> None:
        try:
            with scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(self._source.watch, name="cni watch")
                    group.start_soon(self._watch_status, name="cni status")
        finally:
            ended.set()

    async def _watch_status(self) -> None:
        """Ask the plugins of a network of CNI ≥ 1.1.0 at intervals, and at once when the network changed."""
        while True:
            changed = self._source.changed
            fault = await self._ask_status()
            if fault != self._plugin_fault:
                _logger.warning("the pod network is not ready: %s", fault) if fault else _logger.info("the pod network is ready")
                self._plugin_fault = fault
            with anyio.move_on_after(self._settings.status_interval):
                await changed.wait()

    async def _ask_status(self) -> str:
        snapshot = self._source.snapshot
        conf = snapshot.network
        if conf is None or snapshot.fault or not at_least(conf.version, "1.1.0"):
            return ""
        try:
            for plugin in conf.plugins:
                stdin = request_configuration(plugin, network=conf.name, version=conf.version)
                await self._run_verb("STATUS", conf, plugin, stdin, self._settings.status_timeout)
        except NetworkFailed as exc:
            return exc.message
        return ""

    @contextlib.asynccontextmanager
    async def _turn(self, record: AttachmentRecord) -> AsyncIterator[AttachmentParameters]:
        """The attachment's turn, also after plugins of a server that was killed; of our own we know that they have ended."""
        parameters = record.parameters
        async with self._turns.attachment(parameters.container_id):
            patience = 0.0 if record.key in self._known else self._settings.plugin_timeout
            async with claim(Path(parameters.netns), patience) as held:
                yield replace(parameters, claim=held)

    async def _call(
        self, verb: str, record: AttachmentRecord, plugin: PluginConf, previous: Mapping[str, Any] | None, parameters: AttachmentParameters
    ) -> None:
        stdin = self._stdin(record, plugin, previous)
        await self._run_verb(verb, record.conf, plugin, stdin, self._settings.plugin_timeout, parameters)

    async def _run_verb(
        self, verb: str, conf: NetworkConf, plugin: PluginConf, stdin: bytes, timeout: float, parameters: AttachmentParameters | None = None
    ) -> None:
        binary = self._binary(conf, plugin)
        await self._invoker.call(verb, plugin.type, binary, stdin, network=conf.name, timeout=timeout, parameters=parameters)

    def _stdin(self, record: AttachmentRecord, plugin: PluginConf, previous: Mapping[str, Any] | None) -> bytes:
        conf = record.conf
        return request_configuration(plugin, network=conf.name, version=conf.version, capabilities=record.capabilities, previous=previous)

    def _binary(self, conf: NetworkConf, plugin: PluginConf) -> Path:
        binary = self._source.snapshot.binaries.get(plugin.type)
        if binary is None:
            places = ", ".join(str(path) for path in self._settings.bin_dirs)
            raise NetworkFailed(f"network {conf.name!r}: CNI plugin {plugin.type!r} is not in {places}")
        return binary.path
