"""The server's side of bridge.monitor.sharing: it keeps the containers' pipes, so that a killed monitor takes none with it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from bridge import log
from bridge.errors import AlreadyExists, BridgeError, MonitorGone
from bridge.monitor.protocol import Frame
from bridge.monitor.shelf import Shelf

_logger = log.get("monitor.keeping")
_OF_THE_EVENT = ("event", "task", "fds")


class Successor(Protocol):
    """A monitor that takes containers over (MonitorClient)."""

    async def adopt(
        self, task_id: str, pid: int, start_ticks: int, *, held: Mapping[str, Any] | None = None, fds: Sequence[int] = ()
    ) -> None: ...


class Kept:
    """One container: what its next monitor must know, and duplicates of its descriptors by name."""

    __slots__ = ("ends", "facts")

    def __init__(self, facts: Mapping[str, Any], ends: dict[str, int]) -> None:
        self.facts = facts
        self.ends = ends

    def close(self, *names: str) -> None:
        """Let go of the ends of these names, or of all."""
        for name in names or tuple(self.ends):
            end = self.ends.pop(name, None)
            if end is not None:
                os.close(end)


class Keeper:
    """What the server keeps for the next monitor; fed with the events of the present one. A ``shelf`` outlives the server."""

    def __init__(self, shelf: Shelf | None = None) -> None:
        self._shelf = shelf
        found = {} if shelf is None else shelf.found
        self._kept = {task: Kept(facts, ends) for task, (facts, ends) in found.items()}

    def __len__(self) -> int:
        return len(self._kept)

    def on_event(self, frame: Frame) -> None:
        """An event; its descriptors are the keeper's from now on."""
        message = frame.message
        task = str(message.get("task"))
        match message.get("event"):
            case "held":
                self._drop(task)
                facts = {key: value for key, value in message.items() if key not in _OF_THE_EVENT}
                kept = self._kept[task] = Kept(facts, dict(zip(map(str, message["fds"]), frame.fds, strict=True)))
                if self._shelf is not None:
                    self._shelf.put(task, facts, kept.ends)
                return
            case "exit":
                self._ended(task)
            case "stdin_closed":
                if self._shelf is not None:
                    self._shelf.remove(task, "stdin")
                if task in self._kept:
                    self._kept[task].close("stdin")
        for fd in frame.fds:
            os.close(fd)

    def _drop(self, task: str) -> None:
        kept = self._kept.pop(task, None)
        if kept is not None:
            kept.close()

    def _ended(self, task: str) -> None:
        self._drop(task)
        if self._shelf is not None:
            self._shelf.remove(task)

    async def hand_over(self, monitor: Successor, known: Mapping[str, bool] | None = None) -> None:
        """Give a monitor what it does not know; ``known`` tells of each task that it has whether that one has ended.

        One that it can't take is logged. Raises MonitorGone when it dies too.
        """
        for task in [task for task, ended in (known or {}).items() if ended]:
            self._ended(task)
        wanted = {task: kept for task, kept in self._kept.items() if task not in (known or {})}
        for task, kept in wanted.items():
            facts = dict(kept.facts)
            pid, ticks = int(facts.pop("pid")), int(facts.pop("start_ticks"))
            held = {**facts, "fds": list(kept.ends)}
            try:
                await monitor.adopt(task, pid, ticks, held=held, fds=tuple(kept.ends.values()))
            except MonitorGone:
                raise
            except AlreadyExists:  # it was adopted without its stdio; nothing can be done for that any more
                _logger.error("container %s goes on without a log", task[:13])
            except BridgeError as exc:
                _logger.error("the new monitor can't take container %s: %s", task[:13], exc)
        if wanted:
            _logger.info("gave %d containers to the new monitor", len(wanted))

    def close(self) -> None:
        """Let go of everything."""
        while self._kept:
            self._kept.popitem()[1].close()
