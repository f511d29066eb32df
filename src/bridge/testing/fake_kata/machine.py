"""The machine as the shim sees it: booting it, talking to its agent, noticing its death, and what is left of it on the host."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import anyio

from bridge.errors import BridgeError
from bridge.host import cgroups, syscalls
from bridge.host.namespaces import in_own_thread
from bridge.testing.fake_kata import places
from bridge.testing.fake_kata.guest import PACKET

DEAD_CODE: Final = 255
"""Exit code of what was running when the machine died."""
_BOOT_SECONDS: Final = 60.0
_END_SECONDS: Final = 10.0
_NEWNS, _NEWPID = 0x00020000, 0x20000000


class Refused(BridgeError):
    """Anything that Kata answers without a class: gRPC's UNKNOWN."""


class Exit:
    """The exit of one process in the guest, once it is known."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.code = DEAD_CODE
        self.oom = False

    def set(self, code: int, *, oom: bool) -> None:
        self.code, self.oom = code, oom
        self.done.set()


class Agent:
    """The connection to the agent. A request raises Refused with the agent's words, or when the machine has died."""

    def __init__(self, path: Path) -> None:
        """Raises OSError when nobody listens there."""
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._sock.connect(str(path))
        except OSError:
            self._sock.close()
            raise
        self._sock.setblocking(False)
        self._number = 0
        self._answers: dict[int, asyncio.Future[Mapping[str, Any]]] = {}
        self._exits: dict[int, Exit] = {}
        self.dead = anyio.Event()
        asyncio.get_running_loop().add_reader(self._sock.fileno(), self._readable)

    def _readable(self) -> None:
        try:
            data = self._sock.recv(PACKET)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        message = json.loads(data)
        if "exit" in message:
            self.exit_of(message["exit"]).set(message["code"], oom=message["oom"])
        elif message["id"] in self._answers:
            self._answers.pop(message["id"]).set_result(message)

    def close(self) -> None:
        """The machine is gone, or nobody asks any more: every process counts as ended. Repeatable."""
        if self.dead.is_set():
            return
        self.dead.set()
        asyncio.get_running_loop().remove_reader(self._sock.fileno())
        self._sock.close()
        for answer in self._answers.values():
            answer.set_result({"error": "Dead agent"})
        for known in self._exits.values():
            known.set(known.code, oom=known.oom)

    def exit_of(self, pid: int) -> Exit:
        """The exit of process ``pid`` of the guest, past or to come."""
        found = self._exits.setdefault(pid, Exit())
        if self.dead.is_set():
            found.set(found.code, oom=found.oom)
        return found

    async def ask(self, do: str, *, fds: Sequence[int] = (), **request: Any) -> Any:
        """Ask, handing ``fds`` over, and wait for the answer however long it takes."""
        if self.dead.is_set():
            raise Refused("Dead agent")
        if places.fault("agent") == "mute":
            await self.dead.wait()
        self._number += 1
        answer = self._answers[self._number] = asyncio.get_running_loop().create_future()
        packet = json.dumps({"id": self._number, "do": do, **request}).encode()
        try:
            socket.send_fds(self._sock, [packet], list(fds))
        except OSError as exc:
            raise Refused(f"Dead agent: {exc}") from exc
        message = await answer
        if "error" in message:
            raise Refused(message["error"])
        return message.get("result")


class Machine:
    """One running machine. ``pid`` is what the shim tells for every process in it."""

    def __init__(self, sandbox_id: str, hypervisor: subprocess.Popen[bytes], agent: Agent) -> None:
        self.sandbox_id = sandbox_id
        self.pid = hypervisor.pid
        self.agent = agent
        self._hypervisor = hypervisor

    async def stop(self) -> None:
        """Power it off; what ran in it is gone. Repeatable."""
        self._hypervisor.kill()
        await anyio.to_thread.run_sync(self._hypervisor.wait)
        self.agent.close()
        await anyio.to_thread.run_sync(forget, self.sandbox_id)

    def kill(self) -> None:
        """End it at once, and leave the rest."""
        self._hypervisor.kill()


async def boot(sandbox_id: str, cgroup: str) -> Machine:
    """Boot the machine of a sandbox, its processes in the host's ``cgroup``. Raises Refused when it does not come up."""
    directory = places.machine_dir(sandbox_id)
    (directory / "containers").mkdir(parents=True)
    (directory / "cgroup").write_text(cgroup)
    await anyio.to_thread.run_sync(cgroups.create, cgroup)
    hypervisor = await in_own_thread(lambda: _power_on(sandbox_id, directory))
    places.hypervisor_file(sandbox_id).write_text(str(hypervisor.pid))
    try:
        await anyio.sleep(places.fault("boot_seconds") or 0)
        if places.fault("boot") == "hangs":
            await anyio.sleep_forever()
        if places.fault("boot") == "dies":
            hypervisor.kill()
        with anyio.fail_after(_BOOT_SECONDS):
            return Machine(sandbox_id, hypervisor, await _agent(sandbox_id, hypervisor))
    except BaseException:
        hypervisor.kill()
        hypervisor.wait()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(forget, sandbox_id)
        raise


def _power_on(sandbox_id: str, directory: Path) -> subprocess.Popen[bytes]:
    """In a thread of its own: the next process it starts is the first of a new PID namespace."""
    syscalls.unshare(_NEWPID | _NEWNS)
    # Its arguments name the sandbox, as a hypervisor's do: that is how leftovers are found.
    argv = [places.HYPERVISOR, "-m", "bridge.testing.fake_kata.guest", sandbox_id, str(directory)]
    with places.console_log(sandbox_id).open("wb") as log:
        return subprocess.Popen(
            argv, executable=os.environ[places.PYTHON_ENV], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )


async def _agent(sandbox_id: str, hypervisor: subprocess.Popen[bytes]) -> Agent:
    while True:
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            return Agent(places.agent_socket(sandbox_id))
        if hypervisor.poll() is not None:
            said = places.console_log(sandbox_id).read_text(errors="replace").strip()
            status = f"exit status {hypervisor.returncode}, error messages from {places.HYPERVISOR} log: {said}"
            raise Refused(f"failed to launch {places.HYPERVISOR}: {status}")
        await anyio.sleep(0.01)


def forget(sandbox_id: str) -> None:
    """Remove what a machine that has ended left on the host: cgroups, directories, the record of its containers. Repeatable."""
    directory = places.machine_dir(sandbox_id)
    with contextlib.suppress(FileNotFoundError):
        cgroups.remove((directory / "cgroup").read_text())
    shutil.rmtree(directory, ignore_errors=True)


def kill_hypervisor(sandbox_id: str) -> None:
    """SIGKILL a machine whose shim has died, and wait until it is gone. Absent is success."""
    try:
        pid = int(places.hypervisor_file(sandbox_id).read_text())
        pidfd = os.pidfd_open(pid)
    except (FileNotFoundError, ProcessLookupError):
        return
    try:
        if sandbox_id.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():  # else the number is another's by now
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [], _END_SECONDS)
    finally:
        os.close(pidfd)
