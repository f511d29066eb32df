"""The process that gives a tree of files an SELinux label, so that nobody else waits for its file system (``bridge.host.relabel``).

It is run by its file's name with ``python -I -S``: arguments are a descriptor (O_PATH) of the top, the label, and "1" to be done at
once when the top has it already. The top is labelled last: a tree whose top is right was once done to its end. Links
are labelled, never followed; what is mounted below the top is left alone. Prints how many files were changed.
"""

import ctypes
import errno
import os
import stat
import struct
import sys

UNSUPPORTED = 3
"""Exit code: the file system has no labels of its own."""
READ_ONLY = 4
"""Exit code: the file system can't be written."""
_ATTRIBUTE = "security.selinux"
_SYS_OPENAT2 = 437
_NO_XDEV = 0x01
_libc = ctypes.CDLL(None, use_errno=True)
_GONE = {errno.ENOENT, errno.EXDEV}


def inside(directory: int, name: str, flags: int) -> int:
    """Open ``name`` of ``directory`` unless another file system is mounted there. Raises OSError."""
    how = struct.pack("=QQQ", flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0, _NO_XDEV)
    fd = _libc.syscall(_SYS_OPENAT2, directory, os.fsencode(name), how, len(how))
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), name)
    return int(fd)


def has(fd: int, label: bytes) -> bool:
    """Whether the file behind an O_PATH descriptor has the label. Raises OSError."""
    try:
        return os.getxattr(f"/proc/self/fd/{fd}", _ATTRIBUTE).rstrip(b"\0") == label
    except OSError as exc:
        if exc.errno != errno.ENODATA:
            raise
        return False


def put(fd: int, label: bytes) -> int:
    """Label the file behind an O_PATH descriptor, also if it is a link; how many were changed. Raises OSError."""
    if has(fd, label):
        return 0
    os.setxattr(f"/proc/self/fd/{fd}", _ATTRIBUTE, label + b"\0")
    return 1


def tree(top: int, label: bytes) -> int:
    """Label all that is below ``top``, a directory; how many were changed. Raises OSError naming the file."""
    changed = 0
    stack = [_listing(top)]
    try:
        while stack:
            directory, names = stack[-1]
            if not names:
                stack.pop()
                os.close(directory)
                continue
            name = names.pop()
            try:
                fd = inside(directory, name, os.O_PATH)
            except OSError as exc:
                if exc.errno in _GONE:
                    continue
                raise
            try:
                changed += put(fd, label)
                if stat.S_ISDIR(os.fstat(fd).st_mode):
                    stack.append(_listing(fd))
            except OSError as exc:
                if exc.errno != errno.ENOENT:
                    raise OSError(exc.errno, exc.strerror, os.readlink(f"/proc/self/fd/{fd}")) from exc
            finally:
                os.close(fd)
    finally:
        for directory, _ in stack:
            os.close(directory)
    return changed


def _listing(fd: int) -> tuple[int, list[str]]:
    directory = inside(fd, ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        return directory, os.listdir(directory)
    except BaseException:
        os.close(directory)
        raise


def main(top: int, label: bytes, trust: bool) -> int:
    """The exit code."""
    try:
        if trust and has(top, label):
            print(0)
            return 0
        changed = tree(top, label) if stat.S_ISDIR(os.fstat(top).st_mode) else 0
        print(changed + put(top, label))
    except OSError as exc:
        if exc.errno in (errno.ENOTSUP, errno.EROFS):
            return READ_ONLY if exc.errno == errno.EROFS else UNSUPPORTED
        print(f"{exc.strerror} ({exc.filename!r})", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), os.fsencode(sys.argv[2]), sys.argv[3] == "1"))
