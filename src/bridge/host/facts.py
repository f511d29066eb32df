"""What this host can do, read once at start: capabilities, security modules, cgroup version, hugepages, swap accounting.

Everything is read below a ``root`` directory, so that recorded trees can stand in for a host. A file that is absent means
"the host lacks it"; any other failure to read is a HostError.
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from pathlib import Path

from bridge.errors import HostError
from bridge.host import apparmor, cpu_lists, mount_copies

CAPABILITIES: tuple[str, ...] = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
)
"""Capability names in the order of their bits (include/uapi/linux/capability.h, Linux 5.9 and later)."""

_GO_ARCHITECTURES = {
    "x86_64": "amd64",
    "i686": "386",
    "i386": "386",
    "aarch64": "arm64",
    "armv7l": "arm",
    "armv6l": "arm",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "riscv64": "riscv64",
    "loongarch64": "loong64",
}


@dataclass(frozen=True, slots=True)
class HostFacts:
    """Facts of the host and of the server's own process that decide what a container may be given.

    ``capabilities`` is what the server may hand out (permitted and bounding); ``architecture`` is named as Go and OCI do
    (amd64); ``oom_score_adj`` is the server's own, the lowest it can give unless ``can_lower_oom_score``;
    ``hugepage_sizes`` ("2MB", "1GB") are those whose cgroup limit can be set; ``hostname`` is the node's; ``nofile`` is the server's own
    RLIMIT_NOFILE (soft, hard), None where it is unlimited or unknown. ``cpus`` and ``memory_nodes`` are those present, ``controllers``
    those of cgroup v2; empty where unknown. ``resctrl`` says whether RDT classes can be used. ``mount_copies`` tells that
    bridge.host.mount_copies works here.
    """

    capabilities: frozenset[str]
    seccomp: bool
    apparmor: bool
    selinux: bool
    architecture: str
    cgroup_v2: bool
    oom_score_adj: int
    can_lower_oom_score: bool
    hugepage_sizes: tuple[str, ...]
    swap_accounting: bool
    hostname: str = ""
    nofile: tuple[int, int] | None = None
    cpus: frozenset[int] = frozenset()
    memory_nodes: frozenset[int] = frozenset()
    controllers: frozenset[str] = frozenset()
    resctrl: bool = False
    mount_copies: bool = False


def gather(root: Path = Path("/"), machine: str = "") -> HostFacts:
    """Read the facts below ``root``. Blocking, some twenty small reads; call it at start. Raises HostError."""
    status = _status(root / "proc/self/status")
    permitted = _capability_names(status.get("CapPrm", "0")) & _capability_names(status.get("CapBnd", "0"))
    cgroup = root / "sys/fs/cgroup"
    v2 = (cgroup / "cgroup.controllers").exists()
    return HostFacts(
        capabilities=permitted,
        seccomp=(root / "proc/sys/kernel/seccomp/actions_avail").exists(),
        apparmor=apparmor.enabled(root),
        selinux=(root / "sys/fs/selinux/enforce").exists(),
        architecture=_GO_ARCHITECTURES.get(machine or platform.machine(), machine or platform.machine()),
        cgroup_v2=v2,
        oom_score_adj=int(_read(root / "proc/self/oom_score_adj") or 0),
        can_lower_oom_score="CAP_SYS_RESOURCE" in _capability_names(status.get("CapEff", "0")),
        hugepage_sizes=_hugepage_sizes(root, cgroup, v2),
        swap_accounting=_swap_accounting(cgroup, v2),
        hostname=_read(root / "proc/sys/kernel/hostname").strip(),
        nofile=_nofile(_read(root / "proc/self/limits")),
        cpus=_numbers(root / "sys/devices/system/cpu/present"),
        memory_nodes=_numbers(root / "sys/devices/system/node/online"),
        controllers=frozenset(_read(cgroup / "cgroup.controllers").split()),
        resctrl=(root / "sys/fs/resctrl/schemata").exists(),
        mount_copies=root == Path("/") and mount_copies.available(),
    )


def _numbers(path: Path) -> frozenset[int]:
    text = _read(path).strip()
    try:
        return cpu_lists.parse(text)
    except ValueError as exc:
        raise HostError(f"{path} says {text!r}: {exc}") from exc


def _nofile(limits: str) -> tuple[int, int] | None:
    """From /proc/PID/limits (proc(5))."""
    found = re.search(r"^Max open files\s+(\d+)\s+(\d+)\s", limits, re.MULTILINE)
    return (int(found[1]), int(found[2])) if found else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as exc:
        raise HostError(f"can't read {path}: {exc.strerror}", errno=exc.errno) from exc


def _status(path: Path) -> dict[str, str]:
    """The key/value lines of /proc/PID/status (proc(5))."""
    pairs = (line.partition(":") for line in _read(path).splitlines())
    return {key: value.strip() for key, _, value in pairs}


def _capability_names(mask: str) -> frozenset[str]:
    bits = int(mask, 16)
    return frozenset(name for bit, name in enumerate(CAPABILITIES) if bits >> bit & 1)


def _hugepage_sizes(root: Path, cgroup: Path, v2: bool) -> tuple[str, ...]:
    """Page sizes the kernel has, named as the cgroup files name them; none when no hugetlb controller can limit them."""
    if v2:
        limited = "hugetlb" in _read(cgroup / "cgroup.controllers").split()
    else:
        limited = bool(list((cgroup / "hugetlb").glob("hugetlb.*.limit_in_bytes")))
    if not limited:
        return ()
    kibs = sorted(int(entry.name[len("hugepages-") : -2]) for entry in (root / "sys/kernel/mm/hugepages").glob("hugepages-*kB"))
    return tuple(_size_name(kib) for kib in kibs)


def _size_name(kib: int) -> str:
    for unit, factor in (("GB", 1024 * 1024), ("MB", 1024)):
        if kib % factor == 0:
            return f"{kib // factor}{unit}"
    return f"{kib}KB"


def _swap_accounting(cgroup: Path, v2: bool) -> bool:
    """Whether memory+swap can be limited: memsw files on v1; on v2 memory.swap.max, which the root cgroup never has."""
    if not v2:
        return (cgroup / "memory/memory.memsw.limit_in_bytes").exists()
    return (cgroup / "memory.swap.max").exists() or bool(list(cgroup.glob("*/memory.swap.max")))
