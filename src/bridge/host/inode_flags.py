"""Flags of directories that tell a file system where to put what is made in them (ioctl_iflags(2)). Blocks."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import struct
from pathlib import Path

_FLAGS = struct.Struct("=I4x")  # an int, though the numbers below say long
_TOPDIR = 0x00020000
_SWAPPED = platform.machine().startswith("ppc")  # where the bits for reading and writing are other ones
_GET, _SET = (0x40086601, 0x80086602) if _SWAPPED else (0x80086601, 0x40086602)
_NOT_HERE = {errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EROFS}


def spread(directory: Path) -> bool:
    """Have ext4 put each new directory in ``directory`` in a part of the disk of its own (chattr +T); False where nothing knows that.

    Files that are made soon after others were deleted are found room for slowly in the same part: ext4 passes by each inode that was
    deleted in the last minutes, again for every new file. Raises OSError only when the directory can't be opened.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        (flags,) = _FLAGS.unpack(fcntl.ioctl(fd, _GET, bytes(_FLAGS.size)))
        fcntl.ioctl(fd, _SET, _FLAGS.pack(flags | _TOPDIR))
        (flags,) = _FLAGS.unpack(fcntl.ioctl(fd, _GET, bytes(_FLAGS.size)))
        return bool(flags & _TOPDIR)
    except OSError as exc:
        if exc.errno in _NOT_HERE:
            return False
        raise
    finally:
        os.close(fd)
