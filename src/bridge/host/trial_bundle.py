"""A bundle for a throw-away container that exits at once, by which a runtime is tried on this host.

Programs in it are ELF files of some 140 bytes made here, so that no image and no package is needed.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_MACHINES = {"x86_64": 62, "aarch64": 183}
_PROGRAMS = {
    # exit(0): mov eax,60; xor edi,edi; syscall | mov x8,93; mov x0,0; svc 0
    "exit": {"x86_64": bytes.fromhex("b83c00000031ff0f05"), "aarch64": bytes.fromhex("a80b80d2000080d2010000d4")},
    # for ever: pause() | ppoll(0, 0, 0, 0)
    "wait": {
        "x86_64": bytes.fromhex("b8220000000f05ebf7"),
        "aarch64": bytes.fromhex("000080d2010080d2020080d2030080d2280980d2010000d4faffff17"),
    },
    # execve("/exit", 0, 0), else exit(1)
    "again": {
        "x86_64": bytes.fromhex("488d3d1700000031f631d2b83b0000000f05bf01000000b83c0000000f05") + b"/exit\0",
        "aarch64": bytes.fromhex("00010010010080d2020080d2a81b80d2010000d4200080d2a80b80d2010000d4") + b"/exit\0",
    },
}
_OCI_NAMES = {"net": "network"}
MAPPING = [{"containerID": 0, "hostID": 100000, "size": 65536}]
_OWNED_MOUNTS = [
    {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
    {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
    {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
]
_SHARES = 1024
"""As much as one ordinary process: with the least there is, the programs of a busy node leave a trial milliseconds a minute."""
_HEADERS = struct.Struct("<16sHHIQQQIHHHHHHIIQQQQQQ")
_LOAD_ADDRESS = 0x400000


def exit_program(machine: str) -> bytes | None:
    """A static ELF executable that exits with code 0, or None for a machine that this module has no code for."""
    return program("exit", machine)


def program(name: str, machine: str) -> bytes | None:
    """The same for a program that exits ("exit"), waits for ever ("wait") or becomes /exit ("again")."""
    code = _PROGRAMS[name].get(machine)
    if code is None:
        return None
    number = _MACHINES[machine]
    start, size = _HEADERS.size, _HEADERS.size + len(code)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = (ident, 2, number, 1, _LOAD_ADDRESS + start, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = (1, 5, 0, _LOAD_ADDRESS, _LOAD_ADDRESS, size, size, 0x1000)
    return _HEADERS.pack(*header, *segment) + code


def trial_spec(cgroups_path: str, *, seccomp: bool, pins: Mapping[str, Path] | None = None) -> dict[str, Any]:
    """The OCI spec of the trial: own namespaces, a seccomp filter, and limits that need the controllers a pod needs.

    With ``pins`` it joins these namespaces, as the containers of a pod in a user namespace do.
    """
    joined = [{"type": _OCI_NAMES.get(kind, kind), "path": str(path)} for kind, path in (pins or {}).items()]
    own = [{"type": kind} for kind in ("mount", "pid", "ipc", "uts", "network") if all(each["type"] != kind for each in joined)]
    linux: dict[str, Any] = {
        "namespaces": [*joined, *own],
        "cgroupsPath": cgroups_path,
        "resources": {"memory": {"limit": 64 << 20}, "pids": {"limit": 64}, "cpu": {"shares": _SHARES}},
    }
    if seccomp:
        linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["swapon"], "action": "SCMP_ACT_ERRNO"}]}
    process = {"args": ["/exit"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/"], "noNewPrivileges": True}
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
    ]
    if pins is not None:
        linux |= {"uidMappings": MAPPING, "gidMappings": MAPPING}
        mounts += _OWNED_MOUNTS
    return {"ociVersion": "1.0.2", "root": {"path": "rootfs"}, "process": process, "mounts": mounts, "linux": linux}


def make_bundle(bundle: Path, program: bytes, spec: dict[str, Any]) -> None:
    """Write ``bundle`` with its root filesystem; ``program`` is its /exit. Blocks."""
    for name in ("proc", "dev", "sys"):
        (bundle / "rootfs" / name).mkdir(parents=True)
    bundle.chmod(0o711)  # whatever the umask: a user namespace's root is nobody here
    (bundle / "rootfs").chmod(0o755)
    (bundle / "rootfs/exit").write_bytes(program)
    (bundle / "rootfs/exit").chmod(0o755)
    (bundle / "config.json").write_text(json.dumps(spec))
