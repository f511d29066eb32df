"""A handler's trial: one throw-away container, run to its end, is the only honest answer to "does it work on this host?".

``features`` says what was compiled in, not whether this kernel, this cgroup set-up and this seccomp profile go together. The
program in the container is an ELF file of 132 bytes that exits at once, made here, so that no image and no package is needed.
"""

from __future__ import annotations

import json
import platform
import shutil
import struct
from pathlib import Path
from typing import Any

from anyio import to_thread

from bridge.host import cgroups
from bridge.oci.cli import OciCli
from bridge.oci.logs import merge

# exit(0) in machine code, by e_machine: mov eax,60; xor edi,edi; syscall | mov x8,93; mov x0,0; svc 0
_EXIT = {
    "x86_64": (62, bytes.fromhex("b83c00000031ff0f05")),
    "aarch64": (183, bytes.fromhex("a80b80d2000080d2010000d4")),
}
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


def trial_spec(cgroups_path: str, *, seccomp: bool) -> dict[str, Any]:
    """The OCI spec of the trial: own namespaces, a seccomp filter, and limits that need the controllers a pod needs."""
    linux: dict[str, Any] = {
        "namespaces": [{"type": kind} for kind in ("mount", "pid", "ipc", "uts", "network")],
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
    return {"ociVersion": "1.0.2", "root": {"path": "rootfs"}, "process": process, "mounts": mounts, "linux": linux}


def _make_bundle(bundle: Path, program: bytes, spec: dict[str, Any]) -> None:
    shutil.rmtree(bundle, ignore_errors=True)
    for name in ("proc", "dev"):
        (bundle / "rootfs" / name).mkdir(parents=True)
    (bundle / "rootfs/exit").write_bytes(program)
    (bundle / "rootfs/exit").chmod(0o755)
    (bundle / "config.json").write_text(json.dumps(spec))


async def trial(cli: OciCli, bundle: Path, *, seccomp: bool, timeout: float) -> str:
    """Run the trial in ``bundle``, which must not be on a noexec mount. Returns how the verification was done.

    Raises RuntimeFailed with what the runtime said, and a hint that mends it where one is known. Leaves nothing behind.
    """
    program = exit_program(platform.machine())
    if program is None:
        return f"claimed, not tried: there is no trial program for {platform.machine()}"
    name = f"cri-bridge-trial-{cli.settings.handler}"
    systemd = cli.settings.systemd_cgroup
    path = f"system.slice:cri-bridge:{name}" if systemd else f"/{name}"
    await to_thread.run_sync(_make_bundle, bundle, program, trial_spec(path, seccomp=seccomp))
    try:
        await _run(cli, name, bundle, timeout)
    finally:
        await to_thread.run_sync(lambda: shutil.rmtree(bundle, ignore_errors=True))
    return "a trial container ran"


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
