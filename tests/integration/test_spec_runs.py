"""Specs as built are really run with runc and crun; the container reports what it got from /proc and by trying."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.core.entities import Sandbox, User
from bridge.core.model import Capabilities, ContainerConfig, ContainerSecurity, NamespaceMode, ProfileType, SecurityProfile
from bridge.core.seccomp import default_profile
from bridge.core.security import DEFAULT_CAPABILITIES
from bridge.core.spec import Confinement, SpecSettings, build_container, build_sandbox
from bridge.host.facts import CAPABILITIES, HostFacts, gather
from tests.unit.core.spec_cases import config, image, inputs, sandbox

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("crun_hierarchy")]
RUNTIMES = [name for name in ("runc", "crun") if shutil.which(name)]
NAME = f"cri-bridge-test-{os.getpid()}"
SETTINGS = SpecSettings(cgroup_prefix="test")
FILTERED = ContainerSecurity(seccomp=SecurityProfile())
TIMEOUT = 30
_ENOSYS, _EPERM = 38, 1


@pytest.fixture(scope="module")
def host() -> HostFacts:
    return gather()


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pod_dir(tmp_path: Path) -> Path:
    """What core would have made: a root filesystem with a static busybox, and the pod's files."""
    root = tmp_path / "rootfs"
    (root / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for applet in ("sh", "cat", "grep", "touch", "mkdir", "head", "ls"):
        (root / "bin" / applet).symlink_to("busybox")
    for name in ("hostname", "hosts", "resolv.conf"):
        (tmp_path / name).write_text(f"{name} of the pod\n")
    (tmp_path / "shm").mkdir(mode=0o1777)
    return tmp_path


@pytest.fixture(autouse=True)
def no_cgroups_left() -> Iterator[None]:
    """The pod's cgroup is the test's own; nothing may be left in it."""
    yield
    root = Path("/sys/fs/cgroup")
    for parent in [*root.glob(NAME), *root.glob(f"*/{NAME}")]:
        assert not [child for child in parent.iterdir() if child.is_dir()], f"left in {parent}"
        parent.rmdir()


def _spec(pod_dir: Path, host: HostFacts, wanted: ContainerConfig, pod: Sandbox | None = None, user: User | None = None) -> dict[str, Any]:
    given = inputs(
        container_id=NAME,
        sandbox=dataclasses.replace(pod or sandbox(), namespaces={}, cgroup_parent=f"/{NAME}"),
        config=wanted,
        image=image(),
        rootfs=pod_dir / "rootfs",
        sandbox_dir=pod_dir,
        user=user or User(),
    )
    return build_container(given, host, SETTINGS)


def _run(runtime: str, pod_dir: Path, spec: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """``run`` in the foreground; whatever happens the container is deleted."""
    (pod_dir / "config.json").write_text(json.dumps(spec))
    command = [runtime, "--root", str(pod_dir / "state")]
    try:
        return subprocess.run([*command, "run", "--bundle", str(pod_dir), NAME], input="", capture_output=True, text=True, timeout=TIMEOUT)
    finally:
        subprocess.run([*command, "delete", "--force", NAME], capture_output=True, timeout=TIMEOUT)


def _sh(runtime: str, pod_dir: Path, host: HostFacts, script: str, security: ContainerSecurity | None = None, **more: Any) -> str:
    wanted = config(command=("/bin/sh", "-c", script), security=security or ContainerSecurity())
    done = _run(runtime, pod_dir, _spec(pod_dir, host, wanted, **more))
    assert done.returncode == 0, done.stderr
    return done.stdout


def _status(text: str) -> dict[str, str]:
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def _mask(names: frozenset[str]) -> int:
    return sum(1 << bit for bit, name in enumerate(CAPABILITIES) if name in names)


def test_default_protection(runtime: str, pod_dir: Path, host: HostFacts) -> None:
    security = ContainerSecurity(no_new_privs=True, seccomp=SecurityProfile())
    status = _status(_sh(runtime, pod_dir, host, "cat /proc/self/status", security))
    held = _mask(frozenset(DEFAULT_CAPABILITIES) & host.capabilities)
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == int(status["CapBnd"], 16) == held
    assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1")


def test_paths_are_hidden_or_read_only(runtime: str, pod_dir: Path, host: HostFacts) -> None:
    script = """
    cgroup=/sys/fs/cgroup; [ -d $cgroup/memory ] && cgroup=$cgroup/memory
    for path in /proc/sys/kernel/domainname /proc/sysrq-trigger /sys/kernel/x $cgroup/cgroup.procs; do
      if (echo x > $path) 2>/dev/null; then echo "wrote $path"; fi
    done
    mkdir $cgroup/x 2>/dev/null && echo "made $cgroup/x"
    cat /proc/kcore /proc/keys /proc/timer_list 2>/dev/null | head -c 10
    ls -A /sys/firmware /proc/scsi 2>/dev/null | grep -v : | grep .
    for place in /etc/hosts /dev/null /dev/shm/x; do echo x > $place || echo "can't write $place"; done
    cat /etc/hostname
    true
    """
    assert _sh(runtime, pod_dir, host, script) == "hostname of the pod\n"
    assert (pod_dir / "hosts").read_text() == "x\n"
    assert (pod_dir / "shm" / "x").exists()


def test_read_only_root(runtime: str, pod_dir: Path, host: HostFacts) -> None:
    script = "touch /x 2>/dev/null; touch /etc/hosts 2>/dev/null; touch /dev/shm/y; ls /"
    out = _sh(runtime, pod_dir, host, script, ContainerSecurity(readonly_rootfs=True))
    assert "x" not in out.split()
    assert (pod_dir / "shm" / "y").exists()


def test_user_and_groups(runtime: str, pod_dir: Path, host: HostFacts) -> None:
    security = ContainerSecurity(seccomp=SecurityProfile(ProfileType.UNCONFINED))
    status = _status(_sh(runtime, pod_dir, host, "cat /proc/self/status", security, user=User(1000, 1001, (1001, 5, 44))))
    assert set(status["Uid"].split()) == {"1000"}
    assert set(status["Gid"].split()) == {"1001"}
    assert sorted(map(int, status["Groups"].split())) == [5, 44, 1001]
    assert int(status["CapEff"], 16) == 0
    assert status["Seccomp"] == "0"


def test_ambient_capabilities_reach_another_user(runtime: str, pod_dir: Path, host: HostFacts) -> None:
    security = ContainerSecurity(capabilities=Capabilities(drop=("ALL",), add_ambient=("NET_BIND_SERVICE",)))
    status = _status(_sh(runtime, pod_dir, host, "cat /proc/self/status", security, user=User(1000, 1000)))
    only = _mask(frozenset({"CAP_NET_BIND_SERVICE"}))
    assert int(status["CapEff"], 16) == int(status["CapAmb"], 16) == int(status["CapBnd"], 16) == only


def test_privileged(runtime: str, pod_dir: Path, host: HostFacts) -> None:
    spec = _spec(
        pod_dir,
        host,
        config(
            command=("/bin/sh", "-c", "cat /proc/self/status; grep ' /sys ' /proc/mounts"),
            security=ContainerSecurity(privileged=True),
        ),
        sandbox(privileged=True),
    )
    done = _run(runtime, pod_dir, spec)
    assert done.returncode == 0, done.stderr
    status = _status(done.stdout)
    assert int(status["CapEff"], 16) == _mask(host.capabilities)
    assert status["Seccomp"] == "0"
    assert "sysfs /sys sysfs rw" in done.stdout


def test_sandbox_container_starts(runtime: str, pod_dir: Path, host: HostFacts) -> None:
    pod = dataclasses.replace(sandbox(pid=NamespaceMode.POD), namespaces={}, cgroup_parent=f"/{NAME}")
    done = _run(runtime, pod_dir, build_sandbox(pod, pod_dir / "rootfs", ["/bin/cat", "/proc/self/status"], host, SETTINGS, Confinement()))
    assert done.returncode == 0, done.stderr
    status = _status(done.stdout)
    assert (status["Seccomp"], status["NoNewPrivs"], status["Pid"]) == ("2", "1", "1")
    assert int(status["CapBnd"], 16) == 0


def _program(number: int, *args: int) -> bytes:
    """A static x86-64 ELF that makes one system call and exits with its errno, 0 on success."""
    registers = (b"\x48\xbf", b"\x48\xbe", b"\x48\xba", b"\x49\xba")  # movabs rdi, rsi, rdx, r10
    code = b"".join(load + struct.pack("<Q", value) for load, value in zip(registers, args, strict=False))
    code += b"\xb8" + struct.pack("<I", number) + b"\x0f\x05"  # mov eax; syscall
    code += b"\x48\x85\xc0\x79\x08\x48\xf7\xd8\x48\x89\xc7\xeb\x02\x31\xff"  # rdi = rax < 0 ? -rax : 0
    code += b"\xb8\x3c\x00\x00\x00\x0f\x05"  # exit
    base, offset = 0x400000, 64 + 56
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 62, 1, base + offset, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    size = offset + len(code)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000) + code


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the test programs are x86-64 machine code")
@pytest.mark.parametrize(
    ("number", "args", "code"),
    [
        (39, (), 0),  # getpid
        (41, (2, 1, 0), 0),  # socket(AF_INET)
        (41, (38, 5, 0), _ENOSYS),  # socket(AF_ALG), CVE-2026-31431
        (41, (40, 1, 0), _ENOSYS),  # socket(AF_VSOCK)
        (272, (0x10000000,), _EPERM),  # unshare(CLONE_NEWUSER)
        (56, (0x10000000,), _ENOSYS),  # clone(CLONE_NEWUSER)
        (435, (0, 0), _ENOSYS),  # clone3
        (425, (1, 0), _ENOSYS),  # io_uring_setup
        (135, (0xFFFFFFFF,), 0),  # personality: query
        (135, (0x0040000,), _ENOSYS),  # personality: ADDR_NO_RANDOMIZE
        (450, (0,), _ENOSYS),  # set_mempolicy_home_node
    ],
)
def test_what_the_kernel_answers(runtime: str, pod_dir: Path, host: HostFacts, number: int, args: tuple[int, ...], code: int) -> None:
    program = pod_dir / "rootfs/bin/call"
    program.write_bytes(_program(number, *args))
    program.chmod(0o755)
    done = _run(runtime, pod_dir, _spec(pod_dir, host, config(command=("/bin/call",), security=FILTERED)))
    assert (done.returncode, done.stderr) == (code, "")


def _i386_program(family: int) -> bytes:
    """A static i386 ELF that calls socketcall(SYS_SOCKET, [family, SOCK_STREAM, 0]) and exits with its errno."""
    code = b"\x6a\x00\x6a\x01\x6a" + bytes([family]) + b"\x89\xe1\xbb\x01\x00\x00\x00\xb8\x66\x00\x00\x00\xcd\x80"
    code += b"\x85\xc0\x79\x06\xf7\xd8\x89\xc3\xeb\x02\x31\xdb\xb8\x01\x00\x00\x00\xcd\x80"
    base, offset = 0x08048000, 52 + 32
    header = struct.pack("<16sHHIIIIIHHHHHH", b"\x7fELF\x01\x01\x01", 2, 3, 1, base + offset, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    size = offset + len(code)
    return header + struct.pack("<IIIIIIII", 1, 0, base, base, size, size, 5, 0x1000) + code


def _runs_i386(directory: Path) -> bool:
    program = directory / "probe"
    program.write_bytes(_i386_program(2))
    program.chmod(0o755)
    try:
        return subprocess.run([program], timeout=TIMEOUT).returncode == 0
    except OSError:
        return False


def test_32_bit_programs_keep_their_network_unless_told_otherwise(runtime: str, pod_dir: Path, host: HostFacts) -> None:
    if host.architecture != "amd64" or not _runs_i386(pod_dir):
        pytest.skip("this host runs no i386 programs")
    program = pod_dir / "rootfs/bin/call"
    program.write_bytes(_i386_program(2))
    program.chmod(0o755)
    spec = _spec(pod_dir, host, config(command=("/bin/call",), security=FILTERED))
    assert _run(runtime, pod_dir, spec).returncode == 0
    spec["linux"]["seccomp"] = default_profile("amd64", DEFAULT_CAPABILITIES, native_only=True)
    assert _run(runtime, pod_dir, spec).returncode == 128 + signal.SIGSYS
