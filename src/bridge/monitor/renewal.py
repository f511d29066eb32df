"""Renewal: the monitor replaces its own program by a newer one and stays the process that it is.

It executes the new program in place: same pid, so the containers stay its children and their exits are exact on every kernel; every
descriptor of theirs is inherited, with what was read and not written yet. What the new program must know is in a memory file. Clients
are disconnected and come back, so a renewal is refused while an exec or an attached client would notice.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bridge.errors import HostError, InUse
from bridge.monitor import protocol
from bridge.monitor.container import ContainerStdio
from bridge.monitor.holding import HELD, SPOOL, Holder
from bridge.monitor.logs import Clock, LogFile
from bridge.monitor.parameters import WaitCommand
from bridge.monitor.tasks import Task, Tasks, open_pidfd

_VERSION = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Standing:
    """What a monitor is besides its tasks: its lock and listening socket, when it began, and its limits before it raised them."""

    lock: int
    listener: int
    start_ns: int
    nofile: tuple[int, int]


def execute(argv: Sequence[str], env: Mapping[str, str], standing: Standing, tasks: Tasks) -> None:
    """Become the program ``argv``, which is given ``--resume FD`` as well. Returns only by raising InUse or HostError, unchanged then."""
    busy = [task.id for task in tasks if task.kind == "exec" or (task.stdio is not None and task.stdio.hub.attached)]
    if busy or tasks.launching:
        raise InUse(f"the monitor is busy with {', '.join([*busy, *tasks.launching][:5])}")
    inherited = [standing.lock, standing.listener]
    described = [_described(task, inherited) for task in tasks]
    state = {"v": _VERSION, **dataclasses.asdict(standing), "tasks": described}
    memory = os.memfd_create("monitor", 0)
    try:
        os.write(memory, json.dumps(state).encode())
        for fd in inherited:
            os.set_inheritable(fd, True)
        os.execve(argv[0], [*argv, "--resume", str(memory)], dict(env))  # noqa: S606 - there is no shell in it
    except OSError as exc:
        raise HostError(f"can't execute {argv[0]}: {exc.strerror}", errno=exc.errno) from exc
    finally:
        for fd in inherited:
            os.set_inheritable(fd, False)
        os.close(memory)


def _described(task: Task, inherited: list[int]) -> dict[str, Any]:
    found: dict[str, Any] = {"task": task.id, "kind": task.kind, "pid": task.pid}
    if task.exit is not None:
        found["exit"] = protocol.exit_to_wire(task.exit)
    if task.told_by is not None:
        found["told_by"] = {**dataclasses.asdict(task.told_by), "cwd": str(task.told_by.cwd)}
    if task.kind == SPOOL:
        found |= task.spooled()
        inherited.append(found["fifo"])
    if task.stdio is not None:
        stdio = task.stdio.carried()
        inherited += [fd for fd in (*stdio["ends"].values(), stdio["log"]) if fd is not None]
        found["stdio"] = {**stdio, "rest": {name: _text(rest) for name, rest in stdio["rest"].items()}, "typed": _text(stdio["typed"])}
    return found


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def read(memory: int) -> dict[str, Any]:
    """What ``execute`` wrote, and the memory file closed. Raises HostError for the state of a version that is not known."""
    with os.fdopen(memory, "rb") as file:
        file.seek(0)
        state = dict(json.loads(file.read()))
    if state["v"] != _VERSION:
        raise HostError(f"the monitor before this one left a state of version {state['v']}")
    for fd in (state["lock"], state["listener"]):
        os.set_inheritable(fd, False)
    return state


def standing(state: Mapping[str, Any]) -> tuple[Standing, socket.socket]:
    """What the new monitor is, and its listening socket."""
    listener = socket.socket(fileno=state["listener"])
    listener.setblocking(False)
    return Standing(state["lock"], state["listener"], state["start_ns"], tuple(state["nofile"])), listener


def resume(state: Mapping[str, Any], tasks: Tasks, holder: Holder) -> None:
    """Hold what the monitor before held. To be called before the reaper starts: what has ended meanwhile waits for it."""
    clock = Clock()
    for each in state["tasks"]:
        if each["kind"] == SPOOL:
            os.set_inheritable(each["fifo"], False)
            holder.respool(each["task"], each["fifo"], Path(each["path"]))
            continue
        task = Task(each["task"], each["kind"], each["pid"], stdio=_stdio(each.get("stdio"), clock), told_by=_told_by(each.get("told_by")))
        if each.get("exit"):
            task.exit, task.ending = protocol.exit_from_wire(each["exit"]), True
        if task.exit is not None or task.kind == HELD:
            tasks.keep(task)
        else:
            task.pidfd = open_pidfd(task.pid) if task.told_by is not None else None
            tasks.add(task)


def _told_by(wire: Mapping[str, Any] | None) -> WaitCommand | None:
    return None if wire is None else WaitCommand(wire["task"], wire["argv"], Path(wire["cwd"]), wire["env"])


def _stdio(carried: Mapping[str, Any] | None, clock: Clock) -> ContainerStdio | None:
    if carried is None:
        return None
    ends: dict[str, int] = dict(carried["ends"])
    for fd in (*ends.values(), carried["log"]):
        if fd is not None:
            os.set_inheritable(fd, False)
    log_file = None if carried["log"] is None else LogFile.of(carried["log"], Path(carried["log_path"]), clock)
    stdin = ends.pop("stdin", None)
    made = ContainerStdio(log_file, ends, stdin, terminal=carried["terminal"], stdin_once=carried["stdin_once"])
    made.carry_on(
        {name: base64.b64decode(rest) for name, rest in carried["rest"].items()}, base64.b64decode(carried["typed"]), carried["closing"]
    )
    return made
