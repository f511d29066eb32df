"""A handler's trial: one throw-away container, run to its end, is the only honest answer to "does it work on this host?".

``features`` says what was compiled in, not whether this kernel, this cgroup set-up and this seccomp profile go together. The
program in the container is an ELF file of 132 bytes that exits at once, made here, so that no image and no package is needed.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread

from bridge.host import cgroups, namespaces
from bridge.host.user_namespaces import IdMaps, IdRange
from bridge.oci.cli import OciCli
from bridge.oci.logs import merge

# exit(0) in machine code, by e_machine: mov eax,60; xor edi,edi; syscall | mov x8,93; mov x0,0; svc 0
_EXIT = {
    "x86_64": (62, bytes.fromhex("b83c00000031ff0f05")),
    "aarch64": (183, bytes.fromhex("a80b80d2000080d2010000d4")),
}
_OCI_NAMES = {"net": "network"}
_MAPPING = [{"containerID": 0, "hostID": 100000, "size": 65536}]
_OWNED_MOUNTS = [
    {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
    {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
    {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
]
_HEADERS = struct.Struct("<16sHHIQQQIHHHHHHIIQQQQQQ")
_LOAD_ADDRESS = 0x400000


def exit_program(machine: str) -> bytes | None:
    """A static ELF executable that exits with code 0, or None for a machine that this module has no code for."""
    if machine not in _EXIT:
        return None
    number, code = _EXIT[machine]
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
        "resources": {"memory": {"limit": 64 << 20}, "pids": {"limit": 64}, "cpu": {"shares": 2}},
    }
    if seccomp:
        linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["swapon"], "action": "SCMP_ACT_ERRNO"}]}
    process = {"args": ["/exit"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/"], "noNewPrivileges": True}
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
    ]
    if pins is not None:
        linux |= {"uidMappings": _MAPPING, "gidMappings": _MAPPING}
        mounts += _OWNED_MOUNTS
    return {"ociVersion": "1.0.2", "root": {"path": "rootfs"}, "process": process, "mounts": mounts, "linux": linux}


def _make_bundle(bundle: Path, program: bytes, spec: dict[str, Any]) -> None:
    for name in ("proc", "dev", "sys"):
        (bundle / "rootfs" / name).mkdir(parents=True)
    bundle.chmod(0o711)  # whatever the umask: a user namespace's root is nobody here
    (bundle / "rootfs").chmod(0o755)
    (bundle / "rootfs/exit").write_bytes(program)
    (bundle / "rootfs/exit").chmod(0o755)
    (bundle / "config.json").write_text(json.dumps(spec))


async def trial(cli: OciCli, bundle: Path, *, seccomp: bool, timeout: float, user_namespace: bool = False) -> str:
    """Run the trial in ``bundle``, which must not be on a noexec mount. Returns how the verification was done.

    With ``user_namespace`` in one that was made before, which owns the others: not every runtime joins it right.

    Raises RuntimeFailed with what the runtime said, and a hint that mends it where one is known. Leaves nothing behind.
    """
    program = exit_program(platform.machine())
    if program is None:
        return f"claimed, not tried: there is no trial program for {platform.machine()}"
    # The same in each trial of this server, which so ends what a killed one left, but not the trial of another server here.
    name = f"cri-bridge-trial-{cli.settings.handler}-{hashlib.sha256(os.fsencode(cli.settings.root)).hexdigest()[:8]}"
    systemd = cli.settings.systemd_cgroup
    path = f"system.slice:cri-bridge:{name}" if systemd else f"/{name}"
    await _clear(bundle)
    try:
        pins = await _namespaces(bundle) if user_namespace else None
        await to_thread.run_sync(_make_bundle, bundle, program, trial_spec(path, seccomp=seccomp, pins=pins))
        await _run(cli, name, bundle, timeout)
    finally:
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + timeout):
            await _clear(bundle)
    return "a trial container ran in one" if user_namespace else "a trial container ran"


async def _namespaces(bundle: Path) -> Mapping[str, Path]:
    ids = (IdRange(_MAPPING[0]["containerID"], _MAPPING[0]["hostID"], _MAPPING[0]["size"]),)
    return await namespaces.create(bundle / "ns", net=True, ipc=True, uts=True, hostname="", sysctls={}, user=IdMaps(ids, ids))


async def _clear(bundle: Path) -> None:
    await namespaces.remove(bundle / "ns")
    await to_thread.run_sync(lambda: shutil.rmtree(bundle, ignore_errors=True))


async def _run(cli: OciCli, name: str, bundle: Path, timeout: float) -> None:
    if cli.state_dir(name).exists():  # of a server that was killed in its trial
        await cli.delete(name, force=True)
    try:
        done = await cli.run("run", "--bundle", str(bundle), name, timeout=timeout)
        if done.returncode:
            said = merge((), done.stderr.decode(errors="replace").splitlines())
            raise cli.failure("trial run", done.returncode, said, hint=mending("\n".join(said)))
    except BaseException:
        await cli.delete(name, force=True)
        if not cli.settings.systemd_cgroup:
            await to_thread.run_sync(lambda: cgroups.remove(f"/{name}"))
        raise


def mending(said: str) -> str:
    """The command that mends a known failure of this host; empty when none is known. Blocks for one small read."""
    if "hybrid mode not supported" in said:
        mount = cgroups.layout().mounts.get("")
        held = (mount.point / "cgroup.controllers").read_text().split() if mount else []
        commands = [f"mkdir -p /sys/fs/cgroup/{c} && mount -t cgroup -o {c} none /sys/fs/cgroup/{c}" for c in held]
        return f"this runtime refuses a hybrid host whose cgroup v2 holds controllers; give them to v1: {' && '.join(commands)}"
    return ""
