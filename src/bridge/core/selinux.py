"""SELinux labels of pods and containers: what the policy gives, what the request changes, and a category pair for each pod.

Two pods never have the same pair of categories (MCS), so that the processes of one can't touch the files of another even
where the policy gives both the same types; the containers of a pod share its pair. The store is the one truth about which
pairs are taken: a pair is free again when its pod's record is gone, also after a restart.

Sources: CRI v1 SELinuxOption; CRI-O and containerd for what a partly filled one means.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass

from anyio.to_thread import run_sync

from bridge.core.entities import Sandbox
from bridge.core.live import Live
from bridge.core.model import ContainerConfig, NamespaceMode, NamespaceOptions, PodConfig, SELinuxOptions
from bridge.core.store import Store
from bridge.errors import InvalidRequest, LimitExceeded, Unsupported
from bridge.host import selinux
from bridge.host.selinux import Contexts
from bridge.ports.runtime import Ability, RuntimeBackend, SandboxKind

UNCONFINED_TYPE = "spc_t"
"""The type of containers that the policy doesn't confine ("super privileged"): their volumes need no label of theirs."""
_FIELD = "linux.security_context.selinux_options"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_LEVEL = re.compile(r"s(\d{1,3})(?::(.+))?")
_CATEGORIES = re.compile(r"c(\d{1,4})(?:\.c(\d{1,4}))?")
_TRIES = 64


@dataclass(frozen=True, slots=True)
class Labels:
    """``process`` is what its processes run as, ``mount`` what its files are labelled with; "" leaves it to the policy."""

    process: str = ""
    mount: str = ""


@dataclass(frozen=True, slots=True)
class Context:
    """An SELinux context taken apart; ``level`` is "" where the policy has no levels."""

    user: str
    role: str
    type: str
    level: str = ""

    def __str__(self) -> str:
        return ":".join(part for part in (self.user, self.role, self.type, self.level) if part)


def parse(text: str) -> Context:
    """ "user:role:type[:level]" taken apart."""
    user, role, kind, *level = text.split(":", 3)
    return Context(user, role, kind, level[0] if level else "")


@contextmanager
def of_pod(config: PodConfig, contexts: Contexts | None, categories: int, store: Store, live: Live) -> Iterator[Labels]:
    """The labels of a new pod, with a pair of categories that no other pod has; to be journaled before the block ends.

    Empty where SELinux is not used. A pod has labels also when it runs without them itself (privileged, or in the host's
    namespaces): its confined containers get them. Raises InvalidRequest naming the field, LimitExceeded when no pair is free.
    """
    wanted = checked(config.security.selinux, f"config.{_FIELD}")
    if contexts is None:
        yield Labels()
        return
    level, ours = wanted.level, ""
    if not level and parse(contexts.process).level:
        level = ours = _free(parse(contexts.process).level, categories, taken(store) | live.selinux_levels)
        live.selinux_levels.add(ours)
    try:
        yield _with(Labels(contexts.process, contexts.file), dataclasses.replace(wanted, level=level))
    finally:
        live.selinux_levels.discard(ours)


def of_sandbox(sandbox: Sandbox) -> Labels:
    """What the pod's own process and files carry: nothing when it is privileged or shares what labels would keep apart."""
    security = sandbox.config.security
    return _worn(Labels(sandbox.selinux_process, sandbox.selinux_mount), security.privileged, security.namespaces, security.selinux)


def of_container(sandbox: Sandbox, config: ContainerConfig) -> Labels:
    """The pod's labels with what the container's own request changes. Raises InvalidRequest naming the field."""
    security = config.security
    wanted = checked(security.selinux, f"config.{_FIELD}")
    if not sandbox.selinux_process:
        return Labels()
    labels = _with(Labels(sandbox.selinux_process, sandbox.selinux_mount), wanted)
    pod = sandbox.config.security
    pid = pod.namespaces.pid if security.namespaces.pid is NamespaceMode.POD else security.namespaces.pid
    asked = security.selinux if wanted != SELinuxOptions() else pod.selinux
    return _worn(labels, security.privileged, dataclasses.replace(pod.namespaces, pid=pid), asked)


def _worn(labels: Labels, privileged: bool, namespaces: NamespaceOptions, wanted: SELinuxOptions | None) -> Labels:
    """CRI: privileged means no SELinux restrictions. As in CRI-O, nor has a pod in the host's namespaces any, unless it asks.

    A process without a label of its own becomes what the policy makes of the runtime's children: spc_t.
    """
    if privileged:
        return Labels(mount=labels.mount)
    if wanted is not None and wanted != SELinuxOptions():
        return labels
    if NamespaceMode.NODE in (namespaces.pid, namespaces.ipc):
        return Labels()
    return Labels(mount=labels.mount) if namespaces.network is NamespaceMode.NODE else labels


def _with(labels: Labels, wanted: SELinuxOptions) -> Labels:
    """Both labels with the fields that are given; files keep the policy's role and type."""
    process, file = parse(labels.process), parse(labels.mount)
    level = wanted.level or process.level
    process = Context(wanted.user or process.user, wanted.role or process.role, wanted.type or process.type, level)
    return Labels(str(process), str(dataclasses.replace(file, user=wanted.user or file.user, level=level)))


async def check_known(labels: Labels, wanted: SELinuxOptions | None, contexts: Contexts | None) -> None:
    """Ask the kernel whether the policy has what a request asks for. Raises InvalidRequest naming the field."""
    if contexts is None or wanted is None or wanted == SELinuxOptions():
        return
    for context in (labels.process, labels.mount):
        if context and not await run_sync(selinux.known, context, contexts.root):
            raise InvalidRequest(f"the SELinux policy {contexts.policy} has no context {context}", field=f"config.{_FIELD}")


def check_ability(labels: Labels, backend: RuntimeBackend) -> None:
    """Refuse what would run without the label that it is to have; a virtual machine's processes are its own kernel's matter."""
    feature = backend.features.abilities.get(Ability.SELINUX)
    if not labels.process or backend.sandbox_kind is SandboxKind.VM or backend.features.has(Ability.SELINUX):
        return
    why = feature.detail if feature else "it says nothing of it"
    raise Unsupported(f'config.{_FIELD}: this handler can\'t set SELinux labels ({why}); security.selinux = "off" does without')


def relabels(sandbox: Sandbox, labels: Labels, config: ContainerConfig) -> str:
    """The label that volumes get which ask for it: none where labels don't matter to the container."""
    asked = [options.type for options in (config.security.selinux, sandbox.config.security.selinux) if options is not None and options.type]
    return "" if asked[:1] == [UNCONFINED_TYPE] else labels.mount


# --- categories


def taken(store: Store) -> Set[str]:
    """The levels of all pods and, where they asked for others, of containers."""
    pods = {parse(sandbox.selinux_process).level for sandbox in store.sandboxes.values() if sandbox.selinux_process}
    return pods | {
        container.config.security.selinux.level for container in store.containers.values() if container.config.security.selinux is not None
    }


def _free(base: str, categories: int, used: Set[str]) -> str:
    """A level with two categories that is not in ``used``: chosen at random, and by search when nearly all are taken."""
    sensitivity = base.partition(":")[0].partition("-")[0]
    for _ in range(_TRIES):
        low, high = sorted(random.sample(range(categories), 2))
        if (level := f"{sensitivity}:c{low},c{high}") not in used:
            return level
    for high in range(1, categories):
        for low in range(high):
            if (level := f"{sensitivity}:c{low},c{high}") not in used:
                return level
    raise LimitExceeded(
        f"all {categories * (categories - 1) // 2} pairs of SELinux categories are taken: raise security.selinux_categories"
    )


# --- what a request may hold


def checked(options: SELinuxOptions | None, field: str) -> SELinuxOptions:
    """The options if each field is well formed, empty ones for None. Raises InvalidRequest naming the field."""
    if options is None:
        return SELinuxOptions()
    for name, value in (("user", options.user), ("role", options.role), ("type", options.type)):
        if value and not _NAME.fullmatch(value):
            raise InvalidRequest(f"{value!r} is not an SELinux identifier", field=f"{field}.{name}")
    if options.level and not _is_level(options.level):
        raise InvalidRequest(f"{options.level!r} is not a level such as s0:c1,c2 or s0-s1:c0.c1023", field=f"{field}.level")
    return options


def _is_level(text: str) -> bool:
    """MLS levels and ranges: s0, s0:c1,c2, s0:c0.c5,c9, s0-s15:c0.c1023, s0:c1-s1:c1,c2."""
    found = [_LEVEL.fullmatch(part) for part in text.split("-")]
    if len(found) > 2 or not all(found):
        return False
    levels = [match for match in found if match]
    return int(levels[0][1]) <= int(levels[-1][1]) and all(_are_categories(match[2]) for match in levels if match[2] is not None)


def _are_categories(text: str) -> bool:
    for part in text.split(","):
        found = _CATEGORIES.fullmatch(part)
        if found is None or (found[2] is not None and int(found[1]) >= int(found[2])):
            return False
    return True
