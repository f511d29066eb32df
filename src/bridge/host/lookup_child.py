"""The process that touches paths which may never answer, so that nobody else has to (see ``bridge.host.lookups``).

It is run by its file's name with ``python -I -S`` and imports what is built into the interpreter only: 4 MiB, 8 ms to start. One packet
on descriptor 0 is one question, its answer one packet, until the other side closes. Question: a byte, then the path; the
byte is the sum of MAKE (make a directory when nothing is there) and KEEP (send the descriptor along). Answer: "error number,
mode, path", with links followed.
"""

import _socket
import posix
import sys

MAKE = 1
KEEP = 2
_O_PATH = 0x200000
_ENOENT = 2
_ENAMETOOLONG = 36
_MODE = 0o755
_LONGEST = 4096
_GONE = b" (deleted)"


def look(path: bytes, make: bool) -> tuple[int, int, bytes]:
    """A descriptor (O_PATH) of ``path``, its mode and its name with links followed. Raises OSError."""
    flags = _O_PATH | posix.O_CLOEXEC
    try:
        fd = posix.open(path, flags)
    except OSError as exc:
        if not make or exc.errno != _ENOENT:
            raise
        make_directories(path)
        fd = posix.open(path, flags)
    try:
        # Also what tells a dead mount: its top directory opens without a question to the other side.
        found = posix.fstat(fd)
        name = posix.readlink(b"/proc/self/fd/%d" % fd)
        if not found.st_nlink and name.endswith(_GONE):
            raise OSError(_ENOENT, "")
    except BaseException:
        posix.close(fd)
        raise
    return fd, found.st_mode, name


def make_directories(path: bytes) -> None:
    """``path`` and its parents, mode 0755. A dangling link on the way is not followed: EEXIST."""
    parent = path.rstrip(b"/").rpartition(b"/")[0]
    try:
        posix.mkdir(path, _MODE)
    except FileNotFoundError:
        make_directories(parent)
        posix.mkdir(path, _MODE)


def answer(sock: _socket.socket, question: bytes) -> None:
    """Answer one question."""
    try:
        fd, mode, name = look(question[1:], bool(question[0] & MAKE))
    except OSError as exc:
        sock.send(b"%d 0 " % (exc.errno or _ENOENT))
        return
    try:
        if len(name) > _LONGEST:
            sock.send(b"%d 0 " % _ENAMETOOLONG)
            return
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, fd.to_bytes(4, sys.byteorder))] if question[0] & KEEP else []
        sock.sendmsg([b"0 %d " % mode + name], rights)
    finally:
        posix.close(fd)


def main() -> None:
    """Answer until the other side is gone."""
    posix.umask(0o022)
    sock = _socket.socket(fileno=0)
    while question := sock.recv(_LONGEST + 64):
        answer(sock, question)
    sock.close()


if __name__ == "__main__":
    main()
