"""Which namespaces a pod and its containers may ask for, and what a pod's user namespace means for ids and sysctls. Pure.

A user namespace is the pod's (mode POD) or the node's; a pod's has one mapping of users and one of groups, with container
id 0 mapped. Sources: CRI v1 NamespaceOption and UserNamespace; KEP-127.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bridge.core.entities import Sandbox, User
from bridge.core.model import ContainerConfig, IDMapping, MountPropagation, NamespaceMode, NamespaceOptions, PodConfig, UserNamespace
from bridge.errors import InvalidRequest, Unsupported
from bridge.host import sysctls
from bridge.host.user_namespaces import IdMaps, IdRange
from bridge.ports.runtime import Ability, RuntimeBackend

MAX_HOST_ID = (1 << 32) - 2
"""The highest id that Linux can give; one more means "none"."""

_OPTIONS = "config.linux.security_context.namespace_options"
_USER = f"{_OPTIONS}.userns_options"
_PING = "net.ipv4.ping_group_range"
_PING_MAX = (1 << 31) - 1  # the kernel takes no higher group there


def check_pod(config: PodConfig, backend: RuntimeBackend, id_mapping_fault: str) -> None:
    """Refuse namespaces that can't be had, naming the field, before anything is touched.

    ``id_mapping_fault`` says why the image store can't show its files to a user namespace, "" if it can.
    """
    options = config.security.namespaces
    _check_kinds(options)
    if options.pid is NamespaceMode.TARGET:
        raise InvalidRequest("TARGET is for containers only", field=f"{_OPTIONS}.pid")
    if options.pid is NamespaceMode.POD and not backend.features.has(Ability.SHARED_PID):
        raise Unsupported(f"{_OPTIONS}.pid: this handler can't share one PID namespace in the pod")
    _check_abilities(config, backend)
    owned = [kind for kind, mode in (("net", options.network), ("uts", options.network), ("ipc", options.ipc)) if mode is NamespaceMode.POD]
    sysctls.check(config.sysctls, owned)
    user = user_namespace(config)
    if user is None:
        return
    check_mapping(user.uids, f"{_USER}.uids")
    check_mapping(user.gids, f"{_USER}.gids")
    for name, mode in (("network", options.network), ("pid", options.pid), ("ipc", options.ipc)):
        if mode is NamespaceMode.NODE:
            raise InvalidRequest("the node's can't be used by a pod in a user namespace of its own", field=f"{_OPTIONS}.{name}")
    if not backend.features.has(Ability.USER_NAMESPACES):
        raise Unsupported(
            f"{_USER}: this handler can't do it{f' ({why})' if (why := backend.features.lacks(Ability.USER_NAMESPACES)) else ''}"
        )
    if id_mapping_fault:
        raise Unsupported(f"{_USER}: {id_mapping_fault}")


def _check_abilities(config: PodConfig, backend: RuntimeBackend) -> None:
    """Refuse what a sandbox with a kernel of its own may be unable to have of the node's."""
    options, features = config.security.namespaces, backend.features
    network = Ability.HOST_NETWORK if Ability.HOST_NETWORK in features.abilities else Ability.HOST_NAMESPACES
    for name, wanted, ability in (
        (f"{_OPTIONS}.network", options.network is NamespaceMode.NODE, network),
        (f"{_OPTIONS}.pid", options.pid is NamespaceMode.NODE, Ability.HOST_NAMESPACES),
        (f"{_OPTIONS}.ipc", options.ipc is NamespaceMode.NODE, Ability.HOST_NAMESPACES),
    ):
        if wanted and (why := features.lacks(ability)) is not None:
            raise Unsupported(f"{name}: this handler can't use the node's ({why})")
    if config.sysctls and (why := features.lacks(Ability.SYSCTLS)) is not None:
        raise Unsupported(f"config.linux.sysctls: this handler can't set any ({why})")


def _check_kinds(options: NamespaceOptions) -> None:
    for name, mode in (("network", options.network), ("ipc", options.ipc)):
        if mode not in (NamespaceMode.POD, NamespaceMode.NODE):
            raise InvalidRequest(f"{mode} is not possible: it is the pod's or the node's", field=f"{_OPTIONS}.{name}")


def check_mapping(mappings: Sequence[IDMapping], field: str) -> None:
    """Exactly one mapping, of container id 0 and following to existing ids of the host other than root's. Raises InvalidRequest."""
    if len(mappings) != 1:
        raise InvalidRequest(f"needs exactly one mapping, not {len(mappings)}", field=field)
    one = mappings[0]
    if one.container_id != 0:
        raise InvalidRequest(f"{one.container_id} leaves container id 0 without a mapping", field=f"{field}[0].container_id")
    if one.length < 1:
        raise InvalidRequest("must be at least 1", field=f"{field}[0].length")
    if one.host_id == 0:
        raise InvalidRequest("0 would map the node's own root into the pod", field=f"{field}[0].host_id")
    if one.host_id + one.length - 1 > MAX_HOST_ID:
        raise InvalidRequest(
            f"{one.host_id} and the {one.length - 1} after it pass the highest id, {MAX_HOST_ID}", field=f"{field}[0].length"
        )


def check_container(config: ContainerConfig, sandbox: Sandbox) -> None:
    """Refuse options that contradict the pod's, which alone decides. POD, the CRI's unset value, is whatever the pod has.

    Raises InvalidRequest naming the field.
    """
    wanted, pod = config.security.namespaces, sandbox.config.security.namespaces
    _check_kinds(wanted)
    for name, mode, of_pod in (("network", wanted.network, pod.network), ("pid", wanted.pid, pod.pid), ("ipc", wanted.ipc, pod.ipc)):
        if mode is NamespaceMode.NODE and of_pod is not NamespaceMode.NODE:
            raise InvalidRequest(f"NODE contradicts the pod's, which is {of_pod}", field=f"{_OPTIONS}.{name}")
    if wanted.user is not None and _mapped(wanted.user) != _mapped(pod.user):
        raise InvalidRequest("differs from the pod's, which its containers share", field=_USER)
    for index, mount in enumerate(config.mounts):
        if mount.propagation is MountPropagation.BIDIRECTIONAL and _mapped(pod.user) is not None:
            why = f"{mount.propagation} is not possible: nothing mounted in a user namespace spreads to the node"
            raise InvalidRequest(why, field=f"config.mounts[{index}].propagation")


def _mapped(user: UserNamespace | None) -> UserNamespace | None:
    return user if user is not None and user.mode is NamespaceMode.POD else None


def user_namespace(config: PodConfig) -> UserNamespace | None:
    """The pod's own user namespace; None when it is the node's."""
    return _mapped(config.security.namespaces.user)


def pin(sandbox: Sandbox) -> Path | None:
    """Where the pod's user namespace is pinned; None when it is the node's."""
    path = sandbox.namespaces.get("user")
    return Path(path) if path else None


def id_maps(user: UserNamespace) -> IdMaps:
    """Its mappings as the kernel takes them."""
    return maps(user.uids, user.gids)


def maps(uids: Sequence[IDMapping], gids: Sequence[IDMapping]) -> IdMaps:
    """Mappings as the kernel takes them."""
    return IdMaps(_ranges(uids), _ranges(gids))


def _ranges(mappings: Sequence[IDMapping]) -> tuple[IdRange, ...]:
    return tuple(IdRange(one.container_id, one.host_id, one.length) for one in mappings)


def root_ids(config: PodConfig) -> tuple[int, int] | None:
    """The host's user and group id of root in the pod; None when the pod's root is the node's."""
    user = user_namespace(config)
    return None if user is None else (user.uids[0].host_id, user.gids[0].host_id)


def check_user(user: User, sandbox: Sandbox) -> None:
    """An id that the pod's mapping does not reach can't be anybody's in it. Raises InvalidRequest."""
    own = user_namespace(sandbox.config)
    if own is None:
        return
    uids, gids = own.uids[0], own.gids[0]
    more = [("supplemental_groups", gid, gids) for gid in user.additional_gids]
    for name, value, mapping in [("run_as_user", user.uid, uids), ("run_as_group", user.gid, gids), *more]:
        if value >= mapping.length:
            why = f"{value} is beyond the pod's user namespace, which ends at {mapping.length - 1}"
            raise InvalidRequest(why, field=f"config.linux.security_context.{name}")


def pod_sysctls(config: PodConfig) -> dict[str, str]:
    """What is set in the pod's namespaces: ping for every group without CAP_NET_RAW (ADR 0006), then what is asked for.

    The range of groups that may ping is given in the pod's ids and written in the host's, for a host process writes it.
    """
    wanted = dict(config.sysctls)
    if config.security.namespaces.network is not NamespaceMode.POD:
        return wanted
    user = user_namespace(config)
    asked = next((key for key in wanted if sysctls.parse_key(key) == sysctls.parse_key(_PING)), None)
    if user is None:
        return wanted if asked is not None else {_PING: f"0 {_PING_MAX}", **wanted}
    groups = user.gids[0]
    if asked is not None:
        wanted[asked] = _on_the_host(wanted[asked], groups, asked)
    elif groups.host_id <= _PING_MAX:
        wanted = {_PING: f"{groups.host_id} {min(groups.host_id + groups.length - 1, _PING_MAX)}", **wanted}
    return wanted


def _on_the_host(value: str, groups: IDMapping, key: str) -> str:
    words = value.split()
    if len(words) != 2 or not all(word.isdecimal() for word in words):
        raise InvalidRequest(f"{value!r} is not a range of two group ids", field=sysctls.field_of(key))
    first, last = (int(word) for word in words)
    if first > last:
        return value  # the kernel's way to say "nobody"
    if last >= groups.length:
        raise InvalidRequest(
            f"group {last} is beyond the pod's user namespace, which ends at {groups.length - 1}", field=sysctls.field_of(key)
        )
    return f"{groups.host_id + first} {groups.host_id + last}"


def oci_mappings(config: PodConfig) -> Mapping[str, Any]:
    """``linux.uidMappings`` and ``gidMappings`` of a spec; runtimes want them also where the namespace is joined by path."""
    user = user_namespace(config)
    if user is None:
        return {}
    return {"uidMappings": _oci(user.uids), "gidMappings": _oci(user.gids)}


def _oci(mappings: Sequence[IDMapping]) -> list[dict[str, int]]:
    return [{"containerID": one.container_id, "hostID": one.host_id, "size": one.length} for one in mappings]
