"""System calls that Python 3.11's ``os`` lacks, through ctypes. Each raises OSError with errno and the paths involved.

Blocking ones (mount, umount2) must be called from a worker thread. Kernel needs: open_tree, move_mount, fsopen and fspick 5.2, pidfd_getfd
5.6, mount_setattr 5.12, PIDFD_GET_INFO 6.15 (exit information since then); ENOSYS or ENOTTY reaches the caller, who falls
back or refuses.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import struct

_libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_NOATIME = 0x400
MS_BIND = 0x1000
MS_REC = 0x4000
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_IDMAP = 0x100000
_MOUNT_ATTR = struct.Struct("=QQQQ")

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 0x1
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_RENAME_EXCHANGE = 0x2

MNT_DETACH = 0x2
UMOUNT_NOFOLLOW = 0x8

_M_ARENA_MAX = -8
_PR_SET_CHILD_SUBREAPER = 36
_KCMP_FILES = 2
_SYS_KCMP = {"x86_64": 312, "aarch64": 272}.get(os.uname().machine)
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_SYS_FSPICK = 433
_SYS_OPENAT2 = 437
_SYS_MOUNT_SETATTR = 442
_SYS_PIDFD_GETFD = 438

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10
_OPEN_HOW = struct.Struct("=QQQ")
_OPEN_TRIES = 1000

_PIDFD_INFO_EXIT = 1 << 3
# struct pidfd_info, 64 bytes in its first version (include/uapi/linux/pidfd.h): mask, cgroupid, pid, tgid, ppid,
# ruid … fsgid (8 × u32), exit_code.
_PIDFD_INFO = struct.Struct("=QQIII8Ii")
_PIDFD_GET_INFO = (3 << 30) | (_PIDFD_INFO.size << 16) | (0xFF << 8) | 11


def _check(result: int, what: str, *names: str | os.PathLike[str]) -> int:
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}", " ".join(os.fspath(n) for n in names) or None)
    return result


def _path(value: str | os.PathLike[str]) -> bytes:
    return os.fsencode(value)


def mount(source: str | os.PathLike[str], target: str | os.PathLike[str], fstype: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2)."""
    result = _libc.mount(_path(source), _path(target), fstype.encode() or None, ctypes.c_ulong(flags), data.encode() or None)
    _check(result, f"mount {fstype or 'bind'}", source, target)


def umount(target: str | os.PathLike[str], flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc.umount2(_path(target), flags), "umount", target)


def unshare(flags: int) -> None:
    """unshare(2) for the calling thread."""
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, flags: int = 0) -> None:
    """setns(2) for the calling thread."""
    _check(_libc.setns(fd, flags), "setns")


def sethostname(name: str) -> None:
    """sethostname(2) in the calling thread's UTS namespace."""
    raw = name.encode()
    _check(_libc.sethostname(raw, len(raw)), "sethostname", name)


def order_of_files(one: int, other: int) -> int | None:
    """kcmp(2): 0 when two processes have the same table of descriptors, else a lasting order: negative when ``one`` is before ``other``.

    None where the kernel does not tell: built without it, no right to look, or one of them has ended.
    """
    if _SYS_KCMP is None:
        return None
    return {0: 0, 1: -1, 2: 1}.get(_libc.syscall(_SYS_KCMP, one, other, _KCMP_FILES, 0, 0))


def raise_nofile() -> tuple[int, int]:
    """Allow as many descriptors as the hard limit does; returns what was allowed before (soft, hard)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return soft, hard


def set_child_subreaper(enabled: bool = True) -> None:
    """Make this process the reaper of its orphaned descendants."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, int(enabled), 0, 0, 0), "prctl(PR_SET_CHILD_SUBREAPER)")


def openat2(dir_fd: int, path: str | os.PathLike[str], flags: int, resolve: int) -> int:
    """openat2(2) (Linux ≥ 5.6): open ``path`` relative to ``dir_fd`` under the RESOLVE_* rules; close-on-exec is set.

    A ".." can't be judged while something is renamed or mounted anywhere on the host; the kernel then says EAGAIN and is asked again.
    """
    how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, 0, resolve)
    for _ in range(_OPEN_TRIES):
        fd = int(_libc.syscall(_SYS_OPENAT2, dir_fd, _path(path), how, len(how)))
        if fd != -1 or ctypes.get_errno() != errno.EAGAIN:
            break
    return _check(fd, "openat2", path)


def exchange(one: str | os.PathLike[str], other: str | os.PathLike[str]) -> None:
    """renameat2(2) with RENAME_EXCHANGE: swap two paths of one file system, with no moment at which either is missing.

    EINVAL where the file system can't (ext4, xfs, btrfs and tmpfs can), ENOSYS where the C library lacks it.
    """
    renameat2 = getattr(_libc, "renameat2", None)
    if renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), os.fspath(one))
    _check(renameat2(_AT_FDCWD, _path(one), _AT_FDCWD, _path(other), _RENAME_EXCHANGE), "renameat2", one, other)


def open_tree(dir_fd: int, path: str | os.PathLike[str], *, recursive: bool) -> int:
    """open_tree(2) with OPEN_TREE_CLONE (Linux ≥ 5.2): a detached copy of the mount, and with ``recursive`` of those below it.

    An empty ``path`` means ``dir_fd`` itself. The copy is gone when the descriptor is closed, unless ``move_mount`` attached it.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    return _check(_libc.syscall(_SYS_OPEN_TREE, dir_fd, _path(path), flags), "open_tree", path)


def mount_setattr(
    fd: int, *, set_attributes: int = 0, clear: int = 0, propagation: int = 0, userns_fd: int = 0, recursive: bool = False
) -> None:
    """mount_setattr(2) on the mount behind ``fd`` (Linux ≥ 5.12). ``userns_fd`` goes with MOUNT_ATTR_IDMAP."""
    attributes = _MOUNT_ATTR.pack(set_attributes, clear, propagation, userns_fd)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    _check(_libc.syscall(_SYS_MOUNT_SETATTR, fd, b"", flags, attributes, len(attributes)), "mount_setattr")


def move_mount(fd: int, target: str | os.PathLike[str]) -> None:
    """move_mount(2) (Linux ≥ 5.2): attach the detached mount ``fd`` at ``target``."""
    _check(_libc.syscall(_SYS_MOVE_MOUNT, fd, b"", _AT_FDCWD, _path(target), _MOVE_MOUNT_F_EMPTY_PATH), "move_mount", target)


def detached_mount(fstype: str) -> int:
    """fsopen(2), fsconfig(2), fsmount(2) (Linux ≥ 5.2): a mount of ``fstype`` that is attached nowhere; gone when closed."""
    context = _check(_libc.syscall(_SYS_FSOPEN, fstype.encode(), 1), "fsopen", fstype)
    try:
        _check(_libc.syscall(_SYS_FSCONFIG, context, 6, None, None, 0), "fsconfig", fstype)  # FSCONFIG_CMD_CREATE
        return _check(_libc.syscall(_SYS_FSMOUNT, context, 1, 0), "fsmount", fstype)
    finally:
        os.close(context)


def reconfigure(fd: int, flag: str) -> None:
    """fspick(2), fsconfig(2) (Linux ≥ 5.2): set ``flag``, such as "rw", of the file system behind the mount ``fd``, for all its mounts."""
    context = _check(_libc.syscall(_SYS_FSPICK, fd, b"", 8 | 1), "fspick")  # FSPICK_EMPTY_PATH, FSPICK_CLOEXEC
    try:
        _check(_libc.syscall(_SYS_FSCONFIG, context, 0, flag.encode(), None, 0), "fsconfig")  # FSCONFIG_SET_FLAG
        _check(_libc.syscall(_SYS_FSCONFIG, context, 7, None, None, 0), "fsconfig")  # FSCONFIG_CMD_RECONFIGURE
    finally:
        os.close(context)


def syncfs(fd: int) -> None:
    """syncfs(2): write all of the file system behind ``fd`` to its disk. Blocks."""
    _check(_libc.syncfs(fd), "syncfs")


def pidfd_getfd(pidfd: int, target_fd: int) -> int:
    """Duplicate descriptor ``target_fd`` of the process behind ``pidfd`` (Linux ≥ 5.6); close-on-exec is set."""
    return _check(_libc.syscall(_SYS_PIDFD_GETFD, pidfd, target_fd, 0), "pidfd_getfd")


def pidfd_exit_code(pidfd: int) -> int | None:
    """The raw wait status of the process behind ``pidfd``, also when someone else reaped it (Linux ≥ 6.15).

    None while it runs or where the kernel can't tell.
    """
    buffer = bytearray(_PIDFD_INFO.pack(_PIDFD_INFO_EXIT, *([0] * 13)))
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, buffer)
    except OSError as exc:
        if exc.errno in (errno.ENOTTY, errno.EINVAL, errno.ESRCH, errno.ENOSYS):
            return None
        raise
    fields = _PIDFD_INFO.unpack(buffer)
    return int(fields[-1]) if fields[0] & _PIDFD_INFO_EXIT else None


def use_one_malloc_arena() -> None:
    """Have all threads allocate from one heap (mallopt(3), glibc; elsewhere nothing happens). Call it before the first thread.

    Worker threads would each get an arena of their own and keep what they freed; the interpreter's lock lets only one allocate at a
    time anyway.
    """
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
