"""Pieces of configuration that pods and containers share, from protobuf to the model and back.

A refusal names the dotted CRI field. What only core can judge (does the path exist, can the handler do it) is left to core.
An enum number that this release does not know is refused rather than taken for another: it comes from a newer kubelet.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TypeVar

import betterproto2

from bridge._proto.runtime import v1 as pb
from bridge.core import model
from bridge.core.users import MAX_ID
from bridge.errors import InvalidRequest, Unsupported

E = TypeVar("E", bound=StrEnum)


def enum(cls: type[E], value: betterproto2.Enum, field: str) -> E:
    """The model's member for a protobuf enum member, by CRI's name of it."""
    try:
        return cls(value.name)
    except ValueError as exc:
        known = ", ".join(cls)
        raise InvalidRequest(f"{int(value)} is not one of {known}", field=field) from exc


def required(value: str, field: str) -> str:
    """``value``, which may not be empty."""
    if not value:
        raise InvalidRequest("must not be empty", field=field)
    return value


def linux_only(windows: betterproto2.Message | None, field: str) -> None:
    """Settings of a Windows container can't be kept; an empty message asks for nothing. Raises Unsupported."""
    if windows is not None and bytes(windows):
        raise Unsupported(f"{field}: this server runs Linux containers")


def user_id(value: pb.Int64Value | None, field: str) -> int | None:
    """A user or group id, or None when it is not set."""
    return None if value is None else checked_id(value.value, field)


def checked_id(value: int, field: str) -> int:
    """A user or group id in the range of Kubernetes."""
    if not 0 <= value <= MAX_ID:
        raise InvalidRequest(f"{value} is not between 0 and {MAX_ID}", field=field)
    return value


def groups(values: Sequence[int], field: str) -> tuple[int, ...]:
    """Supplemental groups."""
    return tuple(checked_id(value, f"{field}[{index}]") for index, value in enumerate(values))


def id_mappings(values: Sequence[pb.IdMapping]) -> tuple[model.IDMapping, ...]:
    """Ranges of a user namespace or of an id-mapped mount."""
    return tuple(model.IDMapping(value.host_id, value.container_id, value.length) for value in values)


def namespaces(value: pb.NamespaceOption | None, field: str) -> model.NamespaceOptions:
    """Namespace options; absent means the zero value, POD for each."""
    if value is None:
        return model.NamespaceOptions()
    options = model.NamespaceOptions(
        network=enum(model.NamespaceMode, value.network, f"{field}.network"),
        pid=enum(model.NamespaceMode, value.pid, f"{field}.pid"),
        ipc=enum(model.NamespaceMode, value.ipc, f"{field}.ipc"),
        target_id=value.target_id,
        user=_user_namespace(value.userns_options, f"{field}.userns_options"),
    )
    for name, mode in (("network", options.network), ("ipc", options.ipc)):
        if mode not in (model.NamespaceMode.POD, model.NamespaceMode.NODE):
            raise InvalidRequest(f"{mode} is not possible: it is the pod's or the node's", field=f"{field}.{name}")
    if options.pid is model.NamespaceMode.TARGET:
        required(options.target_id, f"{field}.target_id")
    return options


def _user_namespace(value: pb.UserNamespace | None, field: str) -> model.UserNamespace | None:
    if value is None:
        return None
    mode = enum(model.NamespaceMode, value.mode, f"{field}.mode")
    if mode not in (model.NamespaceMode.POD, model.NamespaceMode.NODE):
        raise InvalidRequest(f"{mode} is not possible: it is the pod's or the node's", field=f"{field}.mode")
    if mode is model.NamespaceMode.NODE and (value.uids or value.gids):
        raise InvalidRequest("mappings need the mode POD", field=f"{field}.uids")
    return model.UserNamespace(mode, id_mappings(value.uids), id_mappings(value.gids))


def namespaces_message(options: model.NamespaceOptions) -> pb.NamespaceOption:
    """The namespace options of a sandbox, as a status reports them."""
    user = options.user
    return pb.NamespaceOption(
        network=pb.NamespaceMode[options.network],
        pid=pb.NamespaceMode[options.pid],
        ipc=pb.NamespaceMode[options.ipc],
        target_id=options.target_id,
        userns_options=None
        if user is None
        else pb.UserNamespace(mode=pb.NamespaceMode[user.mode], uids=mapping_messages(user.uids), gids=mapping_messages(user.gids)),
    )


def mapping_messages(mappings: Sequence[model.IDMapping]) -> list[pb.IdMapping]:
    """Ranges as a status reports them."""
    return [pb.IdMapping(host_id=one.host_id, container_id=one.container_id, length=one.length) for one in mappings]


def profile(value: pb.SecurityProfile | None, old: str, field: str) -> model.SecurityProfile | None:
    """A seccomp or AppArmor profile; ``old`` is the deprecated string field, which counts only when the new one is absent.

    The old field's prefix may stand before a name in the new one too: clients are known to carry it over.
    """
    if value is None:
        return _old_profile(old, field + ("_profile_path" if field.endswith("seccomp") else "_profile")) if old else None
    kind = enum(model.ProfileType, value.profile_type, f"{field}.profile_type")
    if kind is not model.ProfileType.LOCALHOST:
        if value.localhost_ref:
            raise InvalidRequest(f"is only for Localhost, not for {kind}", field=f"{field}.localhost_ref")
        return model.SecurityProfile(kind)
    return model.SecurityProfile(kind, required(value.localhost_ref.removeprefix("localhost/"), f"{field}.localhost_ref"))


def _old_profile(value: str, field: str) -> model.SecurityProfile:
    if value in ("runtime/default", "docker/default"):
        return model.SecurityProfile(model.ProfileType.RUNTIME_DEFAULT)
    if value == "unconfined":
        return model.SecurityProfile(model.ProfileType.UNCONFINED)
    place, _, name = value.partition("/")
    if place != "localhost" or not name:
        raise InvalidRequest(f"profile {value!r} is not runtime/default, unconfined or localhost/NAME", field=field)
    return model.SecurityProfile(model.ProfileType.LOCALHOST, name)


def selinux(value: pb.SeLinuxOption | None) -> model.SELinuxOptions | None:
    """The parts of an SELinux label."""
    return None if value is None else model.SELinuxOptions(value.user, value.role, value.type, value.level)


def resources(value: pb.LinuxContainerResources | None, field: str) -> model.Resources | None:
    """Limits of a container, a pod or its overhead."""
    if value is None:
        return None
    if not -1000 <= value.oom_score_adj <= 1000:
        raise InvalidRequest(f"{value.oom_score_adj} is not between -1000 and 1000", field=f"{field}.oom_score_adj")
    for name in ("cpu_period", "cpu_shares"):
        if getattr(value, name) < 0:
            raise InvalidRequest(f"{getattr(value, name)} is negative", field=f"{field}.{name}")
    pages = tuple(
        (required(one.page_size, f"{field}.hugepage_limits[{i}].page_size"), one.limit) for i, one in enumerate(value.hugepage_limits)
    )
    return model.Resources(
        cpu_period=value.cpu_period,
        cpu_quota=value.cpu_quota,
        cpu_shares=value.cpu_shares,
        memory_limit_in_bytes=value.memory_limit_in_bytes,
        oom_score_adj=value.oom_score_adj,
        cpuset_cpus=value.cpuset_cpus,
        cpuset_mems=value.cpuset_mems,
        hugepage_limits=pages,
        unified=dict(value.unified),
        memory_swap_limit_in_bytes=value.memory_swap_limit_in_bytes,
    )


def resources_message(value: model.Resources) -> pb.LinuxContainerResources:
    """Limits, as a container's status reports them."""
    return pb.LinuxContainerResources(
        cpu_period=value.cpu_period,
        cpu_quota=value.cpu_quota,
        cpu_shares=value.cpu_shares,
        memory_limit_in_bytes=value.memory_limit_in_bytes,
        oom_score_adj=value.oom_score_adj,
        cpuset_cpus=value.cpuset_cpus,
        cpuset_mems=value.cpuset_mems,
        hugepage_limits=[pb.HugepageLimit(page_size=size, limit=limit) for size, limit in value.hugepage_limits],
        unified=dict(value.unified),
        memory_swap_limit_in_bytes=value.memory_swap_limit_in_bytes,
    )


def image_spec(value: pb.ImageSpec | None) -> model.ImageSpec:
    """An image as asked for; absent is like empty."""
    if value is None:
        return model.ImageSpec()
    return model.ImageSpec(value.image, dict(value.annotations), value.user_specified_image, value.runtime_handler, value.image_ref)


def image_spec_message(value: model.ImageSpec) -> pb.ImageSpec:
    """An image as it was asked for."""
    return pb.ImageSpec(
        image=value.image,
        annotations=dict(value.annotations),
        user_specified_image=value.user_specified_image,
        runtime_handler=value.runtime_handler,
        image_ref=value.image_ref,
    )


def signal_name(value: pb.Signal, field: str) -> str:
    """A signal as the model writes it: "SIGTERM", "SIGRTMIN+3"; "" for the image's."""
    if value == pb.Signal.RUNTIME_DEFAULT:
        return ""
    if not value.name:
        raise InvalidRequest(f"{int(value)} is not a known signal", field=field)
    return value.name.replace("PLUS", "+").replace("MINUS", "-")


def signal_message(name: str) -> pb.Signal:
    """The signal of that name; one that the CRI has no number for (such as a bare number) becomes RUNTIME_DEFAULT."""
    full = name if name.startswith("SIG") else f"SIG{name}"
    return _SIGNALS.get(full.upper(), pb.Signal.RUNTIME_DEFAULT)


_SIGNALS = {member.name.replace("PLUS", "+").replace("MINUS", "-"): member for member in pb.Signal}
