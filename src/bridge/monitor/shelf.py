"""Containers' pipes and terminals in the service manager's descriptor store: there they outlive the server and the monitor together.

The keeper holds duplicates for the next monitor; this puts them where the next server finds them too (sd_notify(3), FDSTORE=1). Each
descriptor is stored under the name TASK.END, and what a monitor must know of the task as a memory file TASK.facts. Sending happens in a
worker thread, in order: a service manager that is slow holds nothing up.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import anyio
from anyio.to_thread import run_sync

from bridge import log
from bridge.host.service_manager import ServiceManager

_logger = log.get("monitor.shelf")
_FACTS = "facts"
_FACTS_BYTES = 1 << 20
_PAUSE = 1.0

Found = tuple[Mapping[str, Any], dict[str, int]]


class Shelf:
    """What the service manager keeps. ``found`` is what an earlier server put there; its descriptors are the taker's."""

    def __init__(self, manager: ServiceManager) -> None:
        self._manager = manager
        self._facts: dict[str, str] = {}
        self._names: dict[str, set[str]] = {}
        self._queue: list[tuple[Sequence[str], Sequence[int]]] = []
        self._some = anyio.Event()
        self._full = False
        self.found = self._take(manager.kept)

    def __len__(self) -> int:
        return sum(map(len, self._names.values()))

    def _take(self, kept: Mapping[str, Sequence[int]]) -> dict[str, Found]:
        ends: dict[str, dict[str, int]] = {}
        for name, fds in kept.items():
            task, _, end = name.rpartition(".")
            ends.setdefault(task, {})[end] = fds[0]
            for fd in fds[1:]:  # a name is used once; a duplicate would keep a pipe open for ever
                os.close(fd)
        found: dict[str, Found] = {}
        for task, each in ends.items():
            text, self._names[task] = _read(each.pop(_FACTS, None)), {*each, _FACTS}
            try:
                found[task] = (dict(json.loads(text)), each)
                self._facts[task] = text
            except ValueError:
                _logger.warning("the service manager kept %s of %r, and nothing is known of it: dropped", ", ".join(each), task)
                for fd in each.values():
                    os.close(fd)
                self.remove(task)
        if found:
            _logger.info("the service manager kept the stdio of %d containers", len(found))
        return found

    def put(self, task: str, facts: Mapping[str, Any], ends: Mapping[str, int]) -> None:
        """Store duplicates of ``ends``; the descriptors stay the caller's. What is there already costs nothing."""
        text, names = json.dumps(facts, sort_keys=True), {*ends, _FACTS}
        if self._facts.get(task) == text and self._names.get(task) == names:
            return
        self.remove(task)
        if len(self) + len(names) > self._manager.capacity:
            if not self._full:
                _logger.warning("the service manager keeps %d descriptors: raise FileDescriptorStoreMax=", self._manager.capacity)
            self._full = True
            return
        self._facts[task], self._names[task] = text, names
        memory = os.memfd_create(_FACTS, os.MFD_CLOEXEC)
        os.write(memory, text.encode())
        self._send(task, _FACTS, memory)
        for name, fd in ends.items():
            self._send(task, name, os.dup(fd))

    def remove(self, task: str, *ends: str) -> None:
        """Have the service manager let go of these, or of everything of the task; absent is success."""
        names = self._names.get(task, set())
        for end in [each for each in (ends or tuple(names)) if each in names]:
            names.discard(end)
            self._full = False
            self._queue.append((("FDSTOREREMOVE=1", f"FDNAME={task}.{end}"), ()))
        if not names:
            self._names.pop(task, None)
            self._facts.pop(task, None)
        self._some.set()

    def _send(self, task: str, end: str, fd: int) -> None:
        # FDPOLL=0: what a container said before it ended is to be read by the next monitor, however long that takes.
        self._queue.append((("FDSTORE=1", f"FDNAME={task}.{end}", "FDPOLL=0"), (fd,)))
        self._some.set()

    async def keep(self) -> None:
        """Send what is to be sent, for ever. What is not sent when this is cancelled is dropped."""
        try:
            while True:
                await self._some.wait()
                self._some = anyio.Event()
                while self._queue:
                    if not await run_sync(self._flush):
                        await anyio.sleep(_PAUSE)
        finally:
            for _, fds in self._queue:
                _close(fds)
            self._queue.clear()

    def _flush(self) -> bool:
        """Send until nothing is left or the service manager takes no more; whether nothing is left. Blocks, in one thread at a time."""
        while self._queue:
            lines, fds = self._queue[0]
            if not self._manager.send(lines, fds):
                return False
            del self._queue[0]
            _close(fds)
        return True


def _read(memory: int | None) -> str:
    if memory is None:
        return ""
    with os.fdopen(memory, "rb") as file:
        file.seek(0)
        return file.read(_FACTS_BYTES).decode(errors="replace")


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
