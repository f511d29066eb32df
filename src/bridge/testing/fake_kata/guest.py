"""The guest: the first process of a PID namespace of its own, which stands for the virtual machine, and Kata's agent in it.

Whoever kills it, kills all that runs in it, as with a hypervisor. It runs containers with runc. One thread: a request is answered
before the next is read, exits are told as they come.

A request is one packet of JSON with the descriptors of a process's stdio; an answer has its ``id``. ``{"exit": pid, "code": n, "oom":
bool}`` comes unasked, to everyone connected, and is repeated to who connects later.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bridge.host import cgroups, syscalls

PACKET: Final = 1 << 17
_MS_PRIVATE: Final = 1 << 18
_MS_REC: Final = 1 << 14
_MOST_FDS: Final = 3
_RUNC_INIT: Final = "runc:["
_EXECUTED_SECONDS: Final = 10.0


class Agent:
    """Runs containers; ``root`` is the machine's directory."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(root / "agent.sock"))
        self._listener.listen(16)
        self._peers: list[socket.socket] = []
        self._exits: list[bytes] = []
        self._memory: dict[int, tuple[Path, int]] = {}

    def serve(self) -> None:
        """Until this process, and so the machine, is killed."""
        wakes, wake = socket.socketpair()
        for end in (wakes, wake):
            end.setblocking(False)
        signal.set_wakeup_fd(wake.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while True:
            ready, _, _ = select.select([wakes, self._listener, *self._peers], [], [])
            if wakes in ready:
                wakes.recv(4096)
            if self._listener in ready:
                self._greet(self._listener.accept()[0])
            for peer in ready:
                if peer in self._peers:
                    self._answer(peer)
            self._reap()

    def _greet(self, peer: socket.socket) -> None:
        self._peers.append(peer)
        for told in self._exits:
            self._send(peer, told)

    def _send(self, peer: socket.socket, data: bytes) -> None:
        try:
            peer.send(data)
        except OSError:  # the shim has died
            self._peers.remove(peer)
            peer.close()

    def _answer(self, peer: socket.socket) -> None:
        data, fds, _, _ = socket.recv_fds(peer, PACKET, _MOST_FDS)
        try:
            if not data:
                self._peers.remove(peer)
                peer.close()
                return
            request = json.loads(data)
            try:
                answer = {"result": getattr(self, f"do_{request['do']}")(request, fds)}
            except (OSError, ValueError) as exc:
                answer = {"error": str(exc)}
            self._send(peer, json.dumps({"id": request["id"], **answer}).encode())
        finally:
            for fd in fds:
                os.close(fd)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            code = os.waitstatus_to_exitcode(status)
            told = {"exit": pid, "code": code if code >= 0 else 128 - code, "oom": self._oom_killed(pid)}
            self._exits.append(json.dumps(told).encode())
            for peer in tuple(self._peers):
                self._send(peer, self._exits[-1])

    def _oom_killed(self, pid: int) -> bool:
        directory, before = self._memory.pop(pid, (None, 0))
        try:
            return directory is not None and cgroups.oom_kills(directory) > before
        except OSError:
            return False

    def _runc(self, *verb: str, stdio: Sequence[int] = (), input: bytes = b"") -> None:
        log = self._root / "runc.log"
        log.unlink(missing_ok=True)
        argv = ["runc", "--root", str(self._root / "runc"), "--log", str(log), "--log-format", "json", *verb]
        streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        streams |= dict(zip(streams, stdio, strict=False))
        if input:
            streams["stdin"] = subprocess.PIPE
        child = subprocess.Popen(argv, **streams)
        child.communicate(input or None)
        if child.returncode:
            raise ValueError(_last_words(log) or f"runc {verb[0]}: exit code {child.returncode}")

    def _bundle(self, cid: str) -> Path:
        return self._root / "containers" / cid

    def do_create(self, request: Mapping[str, Any], fds: Sequence[int]) -> int:
        """Make a container of the spec at its place. Returns its pid, as the guest numbers it."""
        bundle = self._bundle(request["container"])
        root = json.loads((bundle / "config.json").read_text())["root"]["path"]
        if not os.listdir(root):
            raise ValueError(f"the root file system {root} is empty in the guest: it was mounted where the machine can't see it")
        verb = ["create", "--bundle", str(bundle), "--pid-file", str(bundle / "pid")]
        console = ["--console-socket", request["console"]] if request.get("console") else []
        self._runc(*verb, *console, request["container"], stdio=fds)
        pid = int((bundle / "pid").read_text())
        directory = cgroups.controller_directory(cgroups.of_pid(pid), "memory")
        if directory is not None:
            self._memory[pid] = (directory, cgroups.oom_kills(directory))
        return pid

    def do_start(self, request: Mapping[str, Any], fds: Sequence[int]) -> None:
        """Start a container that was made."""
        self._runc("start", request["container"])
        _executed(int((self._bundle(request["container"]) / "pid").read_text()))

    def do_exec(self, request: Mapping[str, Any], fds: Sequence[int]) -> int:
        """Run a further process, whose OCI object is in a file. Returns its pid."""
        bundle, name = self._bundle(request["container"]), request["exec"]
        pid_file = bundle / f"{name}.pid"
        verb = ["exec", "--detach", "--process", str(bundle / f"{name}.json"), "--pid-file", str(pid_file)]
        console = ["--console-socket", request["console"]] if request.get("console") else []
        self._runc(*verb, *console, request["container"], stdio=fds)
        pid = int(pid_file.read_text())
        _executed(pid)
        return pid

    def do_signal(self, request: Mapping[str, Any], fds: Sequence[int]) -> None:
        """Signal a process, or with ``all`` a container: a SIGTERM that its first process does not handle becomes a SIGKILL."""
        pid, number = request["pid"], request["signal"]
        if number == signal.SIGTERM and not _handles(pid, number):
            number = signal.SIGKILL
        if request["all"] and number == signal.SIGKILL:
            with contextlib.suppress(ValueError):  # only the first process is sure to be there
                self._runc("kill", "--all", request["container"], "KILL")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def do_update(self, request: Mapping[str, Any], fds: Sequence[int]) -> None:
        """Set limits."""
        self._runc("update", "--resources", "-", request["container"], input=json.dumps(request["resources"]).encode())

    def do_delete(self, request: Mapping[str, Any], fds: Sequence[int]) -> None:
        """Remove a container, running or not; one that is gone is removed."""
        self._runc("delete", "--force", request["container"])


def _executed(pid: int) -> None:
    """Wait until a process has left runc behind, which answers before and whose signal handlers are not the program's."""
    until = time.monotonic() + _EXECUTED_SECONDS
    with contextlib.suppress(OSError):
        while Path(f"/proc/{pid}/comm").read_text().startswith(_RUNC_INIT) and time.monotonic() < until:
            os.readlink(f"/proc/{pid}/exe")  # fails for one that has ended
            time.sleep(0.001)


def _handles(pid: int, number: int) -> bool:
    """Whether a process blocks, ignores or catches a signal; one that is gone does not."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigBlk:", "SigIgn:", "SigCgt:"))]
    return any(mask >> (number - 1) & 1 for mask in masks)


def _last_words(log: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        return "; ".join(line["msg"] for line in lines if line.get("level") in ("error", "fatal"))
    return ""


def main() -> None:
    """Called as ``guest SANDBOX-ID DIRECTORY``, in fresh PID and mount namespaces."""
    syscalls.mount("", "/proc", flags=_MS_REC | _MS_PRIVATE)
    syscalls.mount("proc", "/proc", "proc")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    Agent(Path(sys.argv[2])).serve()


if __name__ == "__main__":
    main()
