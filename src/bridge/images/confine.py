"""Locks the unpacking child into its layer: own mount, network, IPC and UTS namespaces, the layer as the only file system, few powers.

After ``enter`` the process can't name anything outside: the old root is unmounted, not merely hidden, so that even root's
tricks against chroot lead nowhere. Import whatever is needed before. Own ctypes calls: bridge.host would cost start-up time.
"""

from __future__ import annotations

import ctypes
import os
import resource

_NEW_NAMESPACES = 0x00020000 | 0x40000000 | 0x08000000 | 0x04000000  # mount, network, IPC, UTS
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 1 << 18
_MS_NOSUID_NODEV_NOEXEC = 0x2 | 0x4 | 0x8
_MS_NOATIME = 0x400
_MS_REMOUNT = 0x20
_MNT_DETACH = 2
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217}
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522
# chown, dac_override, fowner, fsetid, sys_admin (trusted.* attributes: opaque directories), mknod (whiteouts), setfcap
_KEPT = sum(1 << number for number in (0, 1, 3, 4, 21, 27, 31))
_MEMORY = 1 << 30
_FILES = 64


def enter(layer: str) -> None:
    """Make ``layer`` the root of this process and give up the rest. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(what: str, result: int) -> None:
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"{what}: {os.strerror(code)}")

    path = os.fsencode(layer)
    call("unshare", libc.unshare(_NEW_NAMESPACES))
    call("mount private", libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None))
    call("bind", libc.mount(path, path, None, ctypes.c_ulong(_MS_BIND), None))
    call("remount", libc.mount(None, path, None, ctypes.c_ulong(_MS_BIND | _MS_REMOUNT | _MS_NOSUID_NODEV_NOEXEC | _MS_NOATIME), None))
    os.chdir(layer)
    call("pivot_root", libc.syscall(_SYS_PIVOT_ROOT[os.uname().machine], b".", b"."))
    call("umount", libc.umount2(b".", _MNT_DETACH))
    os.chdir("/")
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES, _FILES))
    call("no_new_privs", libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)(_KEPT & 0xFFFFFFFF, _KEPT & 0xFFFFFFFF, 0, 0, 0, 0)
    call("capset", libc.capset(header, data))
