"""Doctor's questions about the kernel: its features, its cgroups, its modules and settings."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping

from bridge.cli.findings import Finding, Host, State, finding
from bridge.host.cgroup_paths import UNIFIED, CgroupLayout, parse_mountinfo

_FEATURES = (
    # version, name, required, what is lost without it
    ((5, 6), "pidfds", True, "processes can't be held safely"),
    ((5, 12), "mount_setattr", False, "no recursive read-only mounts and no idmapped mounts"),
    ((5, 14), "cgroup.kill", False, "processes of a cgroup are killed one by one"),
    ((5, 19), "idmapped overlay", False, "no user namespaces for pods"),
    ((6, 15), "PIDFD_GET_INFO exit codes", False, "an exit while the monitor is down is reported as code 255, reason MonitorLost"),
)
_NAMESPACES = ("mnt", "net", "ipc", "uts", "pid", "cgroup", "user")
_CONTROLLERS: Mapping[str, tuple[bool, str]] = {
    "cpu": (True, "no CPU shares or limits"),
    "memory": (True, "no memory limits, no OOM reports"),
    "pids": (True, "no limit on processes"),
    "cpuset": (False, "containers can't be bound to CPUs"),
    "io": (False, "no disk limits"),
    "hugetlb": (False, "no limit on huge pages"),
}


def check(host: Host) -> Iterator[Finding]:
    """Every finding about the kernel."""
    yield finding(
        "kernel",
        "root",
        ok=host.is_root,
        good="running as root",
        bad="not root: namespaces, mounts and cgroups can't be made",
        mend="run as root (the systemd unit does)",
        required=True,
    )
    yield from _features(host)
    yield from _cgroups(host)
    yield from _modules_and_sysctls(host)
    yield from _null_device(host)


def _features(host: Host) -> Iterator[Finding]:
    for since, name, required, loss in _FEATURES:
        version = ".".join(map(str, since))
        yield finding(
            "kernel",
            name,
            ok=host.kernel() >= since,
            good=f"Linux {host.release}",
            bad=f"Linux {host.release}: {loss}",
            mend=f"boot Linux {version} or newer",
            required=required,
        )
    for name in _NAMESPACES:
        if not host.path(f"/proc/self/ns/{name}").is_symlink():
            yield Finding("kernel", f"{name} namespaces", State.MISSING, "the kernel was built without them", "boot a distribution kernel")
        elif host.number(f"/proc/sys/user/max_{name}_namespaces") == 0:
            mend = f"sysctl -w user.max_{name}_namespaces=10000"
            yield Finding("kernel", f"{name} namespaces", State.MISSING, f"user.max_{name}_namespaces is 0", mend)
    yield finding(
        "kernel",
        "seccomp",
        ok=host.path("/proc/sys/kernel/seccomp/actions_avail").exists(),
        good="filters are available",
        bad="containers would run without a system-call filter",
        mend="boot a kernel with CONFIG_SECCOMP_FILTER",
    )


def _cgroups(host: Host) -> Iterator[Finding]:
    layout = parse_mountinfo(host.text("/proc/self/mountinfo"))
    mode = "v2" if layout.is_v2 else "v1 (hybrid)" if UNIFIED in layout.mounts else "v1"
    if not layout.mounts:
        yield Finding("cgroups", "hierarchies", State.MISSING, "none is mounted", "mount -t cgroup2 none /sys/fs/cgroup")
        return
    good = "one v2 hierarchy" if layout.is_v2 else f"{mode}: works; v2 gives better memory limits and user namespaces"
    yield Finding("cgroups", "mode", State.OK, good)
    available = _available(host, layout)
    for name, (required, loss) in _CONTROLLERS.items():
        if name == "hugetlb" and name not in layout.mounts and not layout.is_v2:
            mend = _mend_controller(name, v2=False)
            yield Finding("cgroups", name, State.ADVICE, "no v1 hierarchy: no limit on huge pages, and crun refuses to run", mend)
        elif name not in available:
            mend = _mend_controller(name, v2=layout.is_v2)
            yield Finding("cgroups", name, State.MISSING if required else State.ADVICE, f"controller is absent: {loss}", mend)
        else:
            yield Finding("cgroups", name, State.OK, "controller is there")


def _available(host: Host, layout: CgroupLayout) -> set[str]:
    names = {"io" if name == "blkio" else name for name in layout.mounts}
    if UNIFIED in layout.mounts:
        names |= set(host.text(layout.mounts[UNIFIED].point / "cgroup.controllers").split())
    return names


def _mend_controller(name: str, *, v2: bool) -> str:
    if v2:
        enable = f"echo +{name} > /sys/fs/cgroup/cgroup.subtree_control"
        return f"{enable} (memory: also boot without cgroup_disable=memory)" if name == "memory" else enable
    v1 = "blkio" if name == "io" else name
    return f"mkdir -p /sys/fs/cgroup/{v1} && mount -t cgroup -o {v1} none /sys/fs/cgroup/{v1}"


def _modules_and_sysctls(host: Host) -> Iterator[Finding]:
    yield finding(
        "kernel",
        "overlay",
        ok="overlay" in host.text("/proc/filesystems").split(),
        good="the file system is available",
        bad="no overlay file system: containers have no root file system",
        mend="modprobe overlay && echo overlay > /etc/modules-load.d/cri-bridge.conf",
        required=True,
    )
    yield finding(
        "network",
        "net.ipv4.ip_forward",
        ok=host.number("/proc/sys/net/ipv4/ip_forward") == 1,
        good="1",
        bad="0: pods can't talk to anything beyond this node until a CNI plugin sets it",
        mend="echo net.ipv4.ip_forward=1 > /etc/sysctl.d/99-cri-bridge.conf && sysctl --system",
    )
    yield finding(
        "network",
        "bridge-nf-call-iptables",
        ok=host.number("/proc/sys/net/bridge/bridge-nf-call-iptables") == 1,
        good="1",
        bad="services by iptables don't see traffic between pods of one bridge",
        mend="modprobe br_netfilter && sysctl -w net.bridge.bridge-nf-call-iptables=1",
    )
    watches = host.number("/proc/sys/fs/inotify/max_user_instances")
    yield finding(
        "kernel",
        "inotify instances",
        ok=watches is None or watches >= 512,
        good=f"{watches}",
        bad=f"{watches}: many pods that watch files will run out",
        mend="sysctl -w fs.inotify.max_user_instances=8192",
    )


def _null_device(host: Host) -> Iterator[Finding]:
    """Runtimes that are given the host's own hand it to the user that they start; cri-bridge gives them none that can be changed."""
    try:
        found = host.path("/dev/null").stat()
    except FileNotFoundError:
        return
    mode = stat.S_IMODE(found.st_mode)
    yield finding(
        "kernel",
        "/dev/null",
        ok=(found.st_uid, found.st_gid, mode) == (0, 0, 0o666),
        good="root's, for everybody to read and write",
        bad=f"belongs to {found.st_uid}:{found.st_gid}, mode {mode:04o}: a container runtime gave it away (old crun, runsc, runc 1.1.3)",
        mend="chown 0:0 /dev/null && chmod 666 /dev/null",
    )
