"""The runtime itself: puts a process into namespaces, cgroups and a root directory, and leaves it to whoever is the subreaper.

    launcher.py run  BUNDLE       PID_FILE CONSOLE CGROUP_DIRECTORY...
    launcher.py exec PID PROCESS  PID_FILE CONSOLE CGROUP_DIRECTORY...

CONSOLE is "-" without a terminal. It returns when the process runs, with its pid in PID_FILE, or fails with words in PID_FILE.failed and
exit code 127 (no such command), 126 (can't be executed) or 1. A program, not a module: it needs the standard library alone.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import resource
import socket
import stat
import struct
import sys
import termios
from collections.abc import Callable
from typing import Any, NoReturn

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE = {"mount": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000, "pid": 0x20000000, "network": 0x40000000}
FILES = {"mount": "mnt", "network": "net"}
MS_REMOUNT, MS_BIND, MS_MOVE, MS_REC, MS_PRIVATE = 0x20, 0x1000, 0x2000, 0x4000, 0x40000
FLAGS = {
    "ro": 1,
    "nosuid": 2,
    "nodev": 4,
    "noexec": 8,
    "noatime": 0x400,
    "nodiratime": 0x800,
    "relatime": 0x200000,
    "strictatime": 0x1000000,
}
BINDS = {"bind": MS_BIND, "rbind": MS_BIND | MS_REC}
IGNORED = {"rw", "private", "rprivate"}
NODES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx"}
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
CAPABILITIES = (  # by number
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT",
    "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE",
    "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ",
    "PERFMON", "BPF", "CHECKPOINT_RESTORE",
)  # fmt: skip


def call(name: str, *arguments: Any) -> None:
    """A function of the C library. Raises OSError naming it."""
    if getattr(LIBC, name)(*arguments) == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    try:
        call("mount", os.fsencode(source), os.fsencode(target), kind.encode() or None, flags, data.encode() or None)
    except OSError as exc:
        raise OSError(exc.errno, f"{source} on {target}: {exc.strerror}") from exc


def mount_one(root: str, entry: dict[str, Any]) -> None:
    """One of the spec's mounts below ``root``."""
    target, options = inside(root, entry["destination"]), entry.get("options", [])
    flags = sum(FLAGS[option] for option in options if option in FLAGS)
    bind = next((BINDS[option] for option in options if option in BINDS), 0)
    data = ",".join(option for option in options if option not in FLAGS and option not in BINDS and option not in IGNORED)
    if entry.get("type") == "cgroup" and not os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        return  # v1 has a hierarchy for each controller; a real runtime mounts the container's part of each
    source = entry.get("source", "none")
    if bind and not os.path.isdir(source):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_CLOEXEC, 0o644))
    else:
        os.makedirs(target, exist_ok=True)
    if not bind:
        mount(source, target, "cgroup2" if entry["type"] == "cgroup" else entry["type"], flags, data)
        return
    mount(source, target, "", bind)
    mount("none", target, "", MS_PRIVATE | MS_REC)
    if flags:
        mount("none", target, "", MS_BIND | MS_REMOUNT | flags)


def inside(root: str, path: str) -> str:
    """``path`` in the container as a path of the host: links on the way are followed as the container would, never out of ``root``."""
    found, left = root, path.strip("/").split("/")
    for _ in range(100):
        if not left:
            return found
        part = left.pop(0)
        if part == "..":
            found = root if found == root else os.path.dirname(found)
        elif os.path.islink(where := os.path.join(found, part)):
            target = os.readlink(where)
            found = root if target.startswith("/") else found
            left = [*target.strip("/").split("/"), *left]
        elif part not in ("", "."):
            found = where
    raise OSError(errno.ELOOP, f"{path}: too many links")


def make_root(bundle: str, config: dict[str, Any]) -> str:
    """Mount everything; returns the root directory. Nothing of it is seen outside the new mount namespace."""
    root = os.path.join(bundle, config["root"]["path"])
    mount("none", "/", "", MS_PRIVATE | MS_REC)
    mount(root, root, "", MS_BIND | MS_REC)
    for entry in config.get("mounts", []):
        mount_one(root, entry)
    os.umask(0)
    for name, numbers in NODES.items():
        os.mknod(inside(root, f"dev/{name}"), stat.S_IFCHR | 0o666, os.makedev(*numbers))
    for name, target in LINKS.items():
        os.symlink(target, inside(root, f"dev/{name}"))
    for path in config["linux"].get("maskedPaths", []):
        if os.path.isdir(root + path):
            mount("tmpfs", inside(root, path), "tmpfs", FLAGS["ro"])
        elif os.path.exists(root + path):
            mount("/dev/null", inside(root, path), "", MS_BIND)
    for path in config["linux"].get("readonlyPaths", []):
        if os.path.exists(root + path):
            mount(root + path, inside(root, path), "", MS_BIND | MS_REC)
            mount("none", inside(root, path), "", MS_BIND | MS_REMOUNT | FLAGS["ro"] | FLAGS["nosuid"] | FLAGS["nodev"] | FLAGS["noexec"])
    if config["root"].get("readonly"):
        mount("none", root, "", MS_BIND | MS_REMOUNT | FLAGS["ro"])
    return root


def terminal(console: socket.socket, process: dict[str, Any]) -> None:
    """Make a terminal, send its other end to the console socket, and have it as stdio."""
    master = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    fcntl.ioctl(master, 0x40045431, struct.pack("i", 0))  # TIOCSPTLCK: unlock
    (number,) = struct.unpack("I", fcntl.ioctl(master, 0x80045430, b"\0" * 4))  # TIOCGPTN
    slave = os.open(f"/dev/pts/{number}", os.O_RDWR)
    if size := process.get("consoleSize"):
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", size["height"], size["width"], 0, 0))
    socket.send_fds(console, [b"console"], [master])
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for descriptor in (0, 1, 2):
        os.dup2(slave, descriptor)


def become(process: dict[str, Any]) -> None:
    """Limits, capabilities and identity, in the order that keeps the right to set the next."""
    for limit in process.get("rlimits", []):
        resource.setrlimit(getattr(resource, limit["type"]), (limit["soft"], limit["hard"]))
    kept = {name.removeprefix("CAP_") for name in process.get("capabilities", {}).get("bounding", [])}
    for number, name in enumerate(CAPABILITIES):
        if name not in kept:
            LIBC.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)  # one that this kernel does not know needs no dropping
    user = process["user"]
    os.setgroups(user.get("additionalGids", []))
    os.setgid(user["gid"])
    os.setuid(user["uid"])
    os.umask(user.get("umask", 0o022))
    if process.get("noNewPrivileges"):
        call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


class NoCommand(Exception):
    """The command can't be executed; ``code`` is what a shell would say."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(words)
        self.code = code


def execute(process: dict[str, Any]) -> NoReturn:
    os.chdir(process.get("cwd", "/"))
    command, environment = process["args"], dict(entry.partition("=")[::2] for entry in process.get("env", []))
    try:
        os.execvpe(command[0], command, environment)
    except OSError as exc:
        absent = isinstance(exc, FileNotFoundError | NotADirectoryError)
        raise NoCommand(127 if absent else 126, f"exec {command[0]}: {exc.strerror}") from exc


def start(process: dict[str, Any], words: list[str], enter_namespaces: Callable[[], Callable[[], None]]) -> int:
    """Fork twice: the first child enters the namespaces, the second is in them. The pipe closes when the command was executed."""
    pid_file, console_path, *directories = words
    reader, writer = os.pipe()
    if not os.fork():
        try:
            joined = [(f"{each}/cgroup.procs", 0) for each in directories]
            for path, value in [*joined, ("/proc/self/oom_score_adj", process.get("oomScoreAdj"))]:
                if value is not None:
                    with open(path, "w") as file:
                        file.write(str(value))
            console = None
            if console_path != "-":
                console = socket.socket(socket.AF_UNIX)
                console.connect(console_path)
            enter_root = enter_namespaces()
            if child := os.fork():
                os.write(writer, f"pid {child}\n".encode())
                os._exit(0)
            os.setsid()
            enter_root()
            if console is not None:
                terminal(console, process)
            become(process)
            execute(process)
        except BaseException as exc:
            status = exc.code if isinstance(exc, NoCommand) else 1
            os.write(writer, f"failed {status} {exc}\n".encode())
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as told:
        said = dict(line.rstrip("\n").split(" ", 1) for line in told)
    if "failed" in said:
        code, _, why = said["failed"].partition(" ")
        with open(f"{pid_file}.failed", "w") as file:  # stderr may be the command's, which is not ours to write to
            file.write(why)
        return int(code)
    with open(pid_file, "w") as file:
        file.write(said["pid"])
    return 0


def run(bundle: str, *words: str) -> int:
    """A container's first process."""
    with open(os.path.join(bundle, "config.json")) as file:
        config = json.load(file)

    def enter_namespaces() -> Callable[[], None]:
        fresh = 0
        for namespace in config["linux"]["namespaces"]:
            if path := namespace.get("path"):
                with open(path) as there:
                    call("setns", there.fileno(), CLONE[namespace["type"]])
            else:
                fresh |= CLONE[namespace["type"]]
        call("unshare", fresh)
        return lambda: enter(make_root(bundle, config))

    return start(config["process"], list(words), enter_namespaces)


def enter(root: str) -> None:
    """Have ``root`` as "/", in a way that leaves no other root to come back to."""
    os.chdir(root)
    mount(".", "/", "", MS_MOVE)
    os.chroot(".")
    os.chdir("/")


def execute_in(pid: str, process_file: str, *words: str) -> int:
    """A further process in the container of ``pid``."""
    with open(process_file) as file:
        process = json.load(file)

    def enter_namespaces() -> Callable[[], None]:
        root = os.open(f"/proc/{pid}/root", os.O_RDONLY | os.O_DIRECTORY)
        theirs = [os.open(f"/proc/{pid}/ns/{FILES.get(kind, kind)}", os.O_RDONLY) for kind in CLONE]
        for namespace in theirs:
            call("setns", namespace, 0)

        def enter_root() -> None:
            os.fchdir(root)
            os.chroot(".")

        return enter_root

    return start(process, list(words), enter_namespaces)


if __name__ == "__main__":
    verb, *given = sys.argv[1:]
    sys.exit(run(*given) if verb == "run" else execute_in(*given))
