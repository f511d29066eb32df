"""From the one configuration to each part's own small settings object. Pure but for what ``Host`` has gathered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge import config_images
from bridge.config import Config
from bridge.core.metric_groups import Group
from bridge.core.model import DeviceRequest, ProfileType
from bridge.core.pace import SamplerSettings
from bridge.core.settings import CoreSettings
from bridge.core.spec import HostFacts, SpecSettings
from bridge.errors import ConfigError
from bridge.handlers import HandlerSettings
from bridge.host import blockio
from bridge.host.cgroup_paths import CgroupDriver
from bridge.host.selinux import Contexts, Mode
from bridge.images.settings import ImageSettings, Limits, Registry
from bridge.monitor.link import LinkSettings
from bridge.network.cni import CniSettings
from bridge.ports.host import PauseProcess, RuntimeTimeouts
from bridge.streaming.server import StreamSettings
from bridge.tracing.settings import TracingSettings

SYSTEMD_MARK = Path("/run/systemd/system")
SYSTEM_POLICY = Path("/etc/containers/policy.json")
_CATATONIT = "catatonit"
_ANSWER_OVERHEAD = 4096
"""More than everything else in an answer to ExecSync takes."""
_DEFAULT_CGROUP_PARENT = {CgroupDriver.CGROUPFS: "/cri-bridge", CgroupDriver.SYSTEMD: "system.slice"}
# For a static busybox: a shell that waits for anything reaps what the pod's containers leave to process 1.
_SHELL_PAUSE = ("/pause", "sh", "-c", "trap 'exit 0' TERM INT; while :; do sleep 86400 & wait $!; done")


@dataclass(frozen=True, slots=True)
class Host:
    """What was found on this machine at start."""

    facts: HostFacts
    boot_id: str
    pause: PauseProcess | None
    selinux_mode: Mode = Mode.DISABLED
    selinux: Contexts | None = None


def pause_process(root: Path, binary: Path | None) -> PauseProcess | None:
    """How the binary that was copied to ``root``/pause is told to do nothing."""
    if binary is None:
        return None
    return PauseProcess(root, ("/pause", "-P") if binary.name == _CATATONIT else _SHELL_PAUSE)


def cgroup_driver(config: Config, facts: HostFacts) -> CgroupDriver:
    """The configured driver; auto is systemd where systemd runs the host and cgroups are v2."""
    chosen = config.runtime.cgroup_driver
    if chosen == "auto":
        chosen = "systemd" if facts.cgroup_v2 and SYSTEMD_MARK.is_dir() else "cgroupfs"
    return CgroupDriver(chosen)


def core(config: Config, host: Host) -> CoreSettings:
    """For core."""
    runtime = config.runtime
    return CoreSettings(
        run_dir=config.server.run_dir,
        pause_rootfs=host.pause.rootfs if host.pause else None,
        pause_argv=host.pause.argv if host.pause else (),
        boot_id=host.boot_id,
        default_cgroup_parent=_DEFAULT_CGROUP_PARENT[cgroup_driver(config, host.facts)],
        exec_output_limit=runtime.exec_output_limit,
        exec_answer_limit=max(1, config.server.max_message - _ANSWER_OVERHEAD),
        exec_drain=runtime.exec_drain_timeout,
        kill_timeout=runtime.kill_timeout,
        volume_timeout=runtime.volume_timeout,
        create_missing_volumes=runtime.missing_mount_sources == "create",
        never_created_volumes=tuple(map(str, runtime.refused_missing_mount_sources)),
        shm_bytes=runtime.shm_size,
        concurrent_creates=config.server.concurrent_creates,
        selinux=host.selinux,
        selinux_categories=config.security.selinux_categories,
        relabel_timeout=config.security.selinux_relabel_timeout,
        additional_devices=tuple(_device(text) for text in runtime.additional_devices),
        device_ownership=runtime.device_ownership_from_security_context,
        restore_images=config.security.restore_checkpoint_images,
        sampler=SamplerSettings(
            period=config.stats.period,
            idle=config.stats.idle_timeout,
            at_once=config.stats.concurrency,
            count_processes=Group.PROCESS in config.stats.pod_metrics,
        ),
        metric_groups=tuple(map(Group, config.stats.pod_metrics)),
    )


def selinux(config: Config, mode: Mode, contexts: Contexts | None) -> Contexts | None:
    """The contexts to label pods with, None for no labels. Raises ConfigError where they are demanded and can't be had."""
    if config.security.selinux == "off":
        return None
    if contexts is None and config.security.selinux == "on":
        why = (
            "SELinux is disabled on this host"
            if mode is Mode.DISABLED
            else "its policy has no contexts for containers: install container-selinux"
        )
        raise ConfigError(f"security.selinux is on, but {why}")
    return contexts


def _device(text: str) -> DeviceRequest:
    """HOST[:CONTAINER][:PERMISSIONS]; the schema has seen to its form."""
    host_path, *rest = text.split(":")
    permissions = rest.pop() if rest and not rest[-1].startswith("/") else "rwm"
    return DeviceRequest(container_path=rest[0] if rest else host_path, host_path=host_path, permissions=permissions)


def spec(config: Config, host: Host) -> SpecSettings:
    """For the OCI spec. Raises ConfigError for an unreadable seccomp profile or file of block I/O classes."""
    return SpecSettings(
        cgroup_driver=str(cgroup_driver(config, host.facts)),
        pids_limit=max(config.runtime.pids_limit, 0),
        blockio_classes=blockio.load(config.runtime.blockio_config_file) if config.runtime.blockio_config_file else {},
        refuse_missing_classes=config.runtime.missing_resource_classes == "refuse",
        seccomp_profile=_seccomp(config.security.seccomp_profile),
        seccomp_when_unset=ProfileType(config.security.seccomp_when_unset),
        seccomp_profile_root=config.security.seccomp_profile_root,
        apparmor_profile=config.security.apparmor_profile,
        seccomp_native_only=config.security.seccomp_native_only,
        default_capabilities=tuple(f"CAP_{name}" for name in config.security.capabilities),
    )


def _seccomp(path: Path | None) -> Mapping[str, Any] | None:
    if path is None:
        return None
    try:
        profile = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as exc:
        raise ConfigError(f"security.seccomp_profile: {path}: {exc}") from exc
    if not isinstance(profile, dict):
        raise ConfigError(f"security.seccomp_profile: {path} must hold a JSON object")
    return profile


def _registry(entry: config_images.Registry) -> Registry:
    certificate = entry.client_certificate
    client = None if certificate is None else (certificate, entry.client_key or certificate)
    return Registry(tuple(entry.mirrors), entry.insecure, tuple(entry.authorities), client, entry.blocked)


def images(config: Config) -> ImageSettings:
    """For the image store."""
    section = config.images
    return ImageSettings(
        root=section.root,
        registries={name: _registry(each) for name, each in section.registries.items()},
        hosts_dirs=tuple(section.hosts_dirs),
        registries_conf=section.registries_conf or None,
        certificate_dirs=tuple(section.certificate_dirs),
        auth_files=tuple(section.auth_files),
        helper_seconds=section.credential_helper_timeout,
        patience=section.retry_after_limit,
        signature_policy=section.signature_policy or SYSTEM_POLICY,
        signature_policy_required=bool(section.signature_policy),
        signature_policy_dir=section.signature_policy_dir or None,
        registries_d=section.registries_d or None,
        limits=Limits(manifest_bytes=section.max_manifest, layer_bytes=section.max_layer, layer_entries=section.max_layer_files),
        pinned=tuple(section.pinned),
        parallel=section.parallel_downloads,
        idle_seconds=section.stall_timeout,
        floor_bytes=section.minimum_rate,
        floor_seconds=section.minimum_rate_window,
        linger=section.abandoned_pull_timeout,
        verify_days=section.verify_interval,
        verify_rate=section.verify_rate,
        measure_seconds=config.stats.layer_period,
    )


def network(config: Config) -> CniSettings:
    """For CNI."""
    section = config.network
    return CniSettings(
        conf_dir=section.conf_dir,
        bin_dirs=tuple(section.bin_dirs),
        conf_template=section.conf_template,
        plugin_timeout=section.plugin_timeout,
        host_port_plugins=tuple(section.host_port_plugins),
    )


def streaming(config: Config) -> StreamSettings:
    """For the server of exec, attach and port-forward."""
    section = config.streaming
    return StreamSettings(
        address=section.address,
        port=section.port,
        host=section.host,
        certificate=section.tls_certificate,
        key=section.tls_key,
        authorities=section.tls_client_authorities,
        sessions=section.max_sessions,
    )


def tracing(config: Config) -> TracingSettings | None:
    """For OpenTelemetry; None for no traces."""
    section = config.tracing
    if not section.enabled:
        return None
    return TracingSettings(
        endpoint=section.endpoint,
        ratio=section.sampling_ratio,
        headers={name: value.get_secret_value() for name, value in section.headers.items()},
        authorities=section.tls_authorities,
        certificate=section.tls_certificate,
        key=section.tls_key or section.tls_certificate,
        service_name=section.service_name,
        resource=section.resource_attributes,
        queue=section.queue,
        period=section.period,
        timeout=section.timeout,
        flush=section.flush_timeout,
    )


def link(config: Config) -> LinkSettings:
    """For the connection to the monitor."""
    section = config.monitor
    return LinkSettings(
        socket=section.socket, log_file=section.log_file, log_level=config.server.log_level, start_timeout=section.start_timeout
    )


def timeouts(config: Config) -> RuntimeTimeouts:
    """Deadlines of every handler that has none of its own."""
    runtime = config.runtime
    end = runtime.kill_timeout
    return RuntimeTimeouts(create=runtime.create_timeout, start=runtime.start_timeout, kill=end, delete=end)


def handlers(config: Config) -> list[HandlerSettings]:
    """The enabled handlers."""
    common = timeouts(config)
    found = []
    for name, handler in config.runtime.handlers.items():
        if handler.enabled:
            create, start = handler.create_timeout or common.create, handler.start_timeout or common.start
            own = RuntimeTimeouts(create=create, start=start, exec=common.exec, delete=common.delete, kill=common.kill)
            allowed = tuple(handler.allowed_annotations)
            found.append(HandlerSettings(name, handler.plugin, handler.options, own, allowed, handler.base_spec))
    return found
