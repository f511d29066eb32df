"""PodSandboxConfig and ContainerConfig to the model's PodConfig and ContainerConfig.

Refused here, as containerd and CRI-O refuse it or would fail later and less clearly: what lacks its identity, numbers out
of range, enum numbers nobody knows, settings of Windows containers. Equal requests give equal configs, since core compares
them to tell a retry from a conflict.
"""

from __future__ import annotations

import ipaddress

from bridge._proto.runtime import v1 as pb
from bridge.api import convert_parts as parts
from bridge.api.convert_parts import required
from bridge.core import model
from bridge.errors import InvalidRequest
from bridge.ports.network import PortMapping

_PROTOCOLS = {pb.Protocol.TCP: "tcp", pb.Protocol.UDP: "udp", pb.Protocol.SCTP: "sctp"}


def pod_config(value: pb.PodSandboxConfig | None, field: str = "config") -> model.PodConfig:
    """The pod that is asked for. Raises InvalidRequest naming the field."""
    if value is None:
        raise InvalidRequest("is missing", field=field)
    parts.linux_only(value.windows, f"{field}.windows")
    linux = value.linux or pb.LinuxPodSandboxConfig()
    dns = value.dns_config
    return model.PodConfig(
        metadata=_pod_metadata(value.metadata, f"{field}.metadata"),
        hostname=value.hostname,
        log_directory=_absolute_or_empty(value.log_directory, f"{field}.log_directory"),
        dns=None if dns is None else model.DNSConfig(tuple(dns.servers), tuple(dns.searches), tuple(dns.options)),
        port_mappings=tuple(_port_mapping(one, f"{field}.port_mappings[{index}]") for index, one in enumerate(value.port_mappings)),
        labels=dict(value.labels),
        annotations=dict(value.annotations),
        cgroup_parent=linux.cgroup_parent,
        sysctls=dict(linux.sysctls),
        overhead=parts.resources(linux.overhead, f"{field}.linux.overhead"),
        resources=parts.resources(linux.resources, f"{field}.linux.resources"),
        security=_sandbox_security(linux.security_context, f"{field}.linux.security_context"),
    )


def _pod_metadata(value: pb.PodSandboxMetadata | None, field: str) -> model.PodMetadata:
    if value is None:
        raise InvalidRequest("is missing", field=field)
    return model.PodMetadata(
        name=required(value.name, f"{field}.name"),
        uid=required(value.uid, f"{field}.uid"),
        namespace=required(value.namespace, f"{field}.namespace"),
        attempt=value.attempt,
    )


def _absolute_or_empty(path: str, field: str) -> str:
    if path and not path.startswith("/"):
        raise InvalidRequest(f"{path!r} is not an absolute path", field=field)
    if "\0" in path:
        raise InvalidRequest("holds a NUL byte", field=field)
    return path


def _port_mapping(value: pb.PortMapping, field: str) -> PortMapping:
    protocol = _PROTOCOLS.get(value.protocol)
    if protocol is None:
        raise InvalidRequest(f"{int(value.protocol)} is not one of TCP, UDP, SCTP", field=f"{field}.protocol")
    if not 1 <= value.container_port <= 65535:
        raise InvalidRequest(f"{value.container_port} is not between 1 and 65535", field=f"{field}.container_port")
    if not 0 <= value.host_port <= 65535:
        raise InvalidRequest(f"{value.host_port} is not between 0 and 65535", field=f"{field}.host_port")
    if value.host_ip:
        try:
            zone = getattr(ipaddress.ip_address(value.host_ip), "scope_id", None)
        except ValueError as exc:
            raise InvalidRequest(f"{value.host_ip!r} is not an IP address", field=f"{field}.host_ip") from exc
        if zone is not None:
            raise InvalidRequest(f"{value.host_ip!r} names an interface, which no plugin can map", field=f"{field}.host_ip")
    return PortMapping(value.container_port, value.host_port, protocol, value.host_ip)


def _sandbox_security(value: pb.LinuxSandboxSecurityContext | None, field: str) -> model.SandboxSecurity:
    if value is None:
        return model.SandboxSecurity()
    if value.run_as_group is not None and value.run_as_user is None:
        raise InvalidRequest("needs run_as_user", field=f"{field}.run_as_group")
    return model.SandboxSecurity(
        namespaces=parts.namespaces(value.namespace_options, f"{field}.namespace_options"),
        selinux=parts.selinux(value.selinux_options),
        run_as_user=parts.user_id(value.run_as_user, f"{field}.run_as_user"),
        run_as_group=parts.user_id(value.run_as_group, f"{field}.run_as_group"),
        readonly_rootfs=value.readonly_rootfs,
        supplemental_groups=parts.groups(value.supplemental_groups, f"{field}.supplemental_groups"),
        supplemental_groups_policy=parts.enum(model.GroupsPolicy, value.supplemental_groups_policy, f"{field}.supplemental_groups_policy"),
        privileged=value.privileged,
        seccomp=parts.profile(value.seccomp, value.seccomp_profile_path, f"{field}.seccomp"),
        apparmor=parts.profile(value.apparmor, "", f"{field}.apparmor"),
    )


def container_config(value: pb.ContainerConfig | None, field: str = "config") -> model.ContainerConfig:
    """The container that is asked for. Raises InvalidRequest naming the field."""
    if value is None:
        raise InvalidRequest("is missing", field=field)
    if value.metadata is None:
        raise InvalidRequest("is missing", field=f"{field}.metadata")
    image = parts.image_spec(value.image)
    required(image.image, f"{field}.image.image")
    parts.linux_only(value.windows, f"{field}.windows")
    linux = value.linux or pb.LinuxContainerConfig()
    return model.ContainerConfig(
        metadata=model.ContainerMetadata(required(value.metadata.name, f"{field}.metadata.name"), value.metadata.attempt),
        image=image,
        command=tuple(value.command),
        args=tuple(value.args),
        working_dir=value.working_dir,
        envs=tuple(_env(one, f"{field}.envs[{index}]") for index, one in enumerate(value.envs)),
        mounts=tuple(_mount(one, f"{field}.mounts[{index}]") for index, one in enumerate(value.mounts)),
        devices=tuple(_device(one, f"{field}.devices[{index}]") for index, one in enumerate(value.devices)),
        cdi_devices=tuple(required(one.name, f"{field}.CDI_devices[{index}].name") for index, one in enumerate(value.CDI_devices)),
        labels=dict(value.labels),
        annotations=dict(value.annotations),
        log_path=value.log_path,
        stdin=value.stdin,
        stdin_once=value.stdin_once,
        tty=value.tty,
        resources=parts.resources(linux.resources, f"{field}.linux.resources"),
        security=_container_security(linux.security_context, f"{field}.linux.security_context"),
        stop_signal=parts.signal_name(value.stop_signal, f"{field}.stop_signal"),
    )


def _env(value: pb.KeyValue, field: str) -> tuple[str, str]:
    """A runtime's configuration is JSON, so bytes that are no UTF-8 can't reach the process."""
    required(value.key, f"{field}.key")
    try:
        return value.key, value.value.decode()
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f"the value of {value.key} is not UTF-8", field=f"{field}.value") from exc


def _mount(value: pb.Mount, field: str) -> model.MountRequest:
    if value.image is not None and value.host_path:
        raise InvalidRequest("a mount has a host path or an image, not both", field=f"{field}.image")
    if value.image is None and value.image_sub_path:
        raise InvalidRequest("needs an image", field=f"{field}.image_sub_path")
    if value.image is None:
        required(value.host_path, f"{field}.host_path")
    return model.MountRequest(
        container_path=required(value.container_path, f"{field}.container_path"),
        host_path=value.host_path,
        readonly=value.readonly,
        selinux_relabel=value.selinux_relabel,
        propagation=parts.enum(model.MountPropagation, value.propagation, f"{field}.propagation"),
        uid_mappings=parts.id_mappings(value.uid_mappings),
        gid_mappings=parts.id_mappings(value.gid_mappings),
        recursive_read_only=value.recursive_read_only,
        image=None if value.image is None else parts.image_spec(value.image),
        image_sub_path=value.image_sub_path,
        mount_options=tuple(value.mount_options),
    )


def _device(value: pb.Device, field: str) -> model.DeviceRequest:
    """Without a place in the container the device keeps the one it has on the host."""
    host_path = required(value.host_path, f"{field}.host_path")
    return model.DeviceRequest(value.container_path or host_path, host_path, value.permissions or "rwm")


def _container_security(value: pb.LinuxContainerSecurityContext | None, field: str) -> model.ContainerSecurity:
    if value is None:
        return model.ContainerSecurity()
    if value.run_as_group is not None and value.run_as_user is None and not value.run_as_username:
        raise InvalidRequest("needs run_as_user or run_as_username", field=f"{field}.run_as_group")
    if value.run_as_user is not None and value.run_as_username:
        raise InvalidRequest("can't stand beside run_as_user", field=f"{field}.run_as_username")
    change = value.capabilities
    return model.ContainerSecurity(
        capabilities=None
        if change is None
        else model.Capabilities(tuple(change.add_capabilities), tuple(change.drop_capabilities), tuple(change.add_ambient_capabilities)),
        privileged=value.privileged,
        namespaces=parts.namespaces(value.namespace_options, f"{field}.namespace_options"),
        selinux=parts.selinux(value.selinux_options),
        run_as_user=parts.user_id(value.run_as_user, f"{field}.run_as_user"),
        run_as_group=parts.user_id(value.run_as_group, f"{field}.run_as_group"),
        run_as_username=value.run_as_username,
        readonly_rootfs=value.readonly_rootfs,
        supplemental_groups=parts.groups(value.supplemental_groups, f"{field}.supplemental_groups"),
        supplemental_groups_policy=parts.enum(model.GroupsPolicy, value.supplemental_groups_policy, f"{field}.supplemental_groups_policy"),
        no_new_privs=value.no_new_privs,
        masked_paths=tuple(value.masked_paths),
        readonly_paths=tuple(value.readonly_paths),
        seccomp=parts.profile(value.seccomp, value.seccomp_profile_path, f"{field}.seccomp"),
        apparmor=parts.profile(value.apparmor, value.apparmor_profile, f"{field}.apparmor"),
    )
