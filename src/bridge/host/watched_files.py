"""The small files of some directories, read once and again only after a change (inotify).

Who asks for the newest state pays one read of the inotify descriptor while nothing has changed; no directory is scanned and
no watch has to be waited for, so that a file that was written just before a request is seen by it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import anyio
from anyio.to_thread import run_sync

from bridge import log
from bridge.host.inotify import DirectoryWatch

_LIMIT = 4 << 20
_SETTLE = 0.1  # seconds from the first change to looking: an installer writes several files
_logger = log.get("host.files")


@dataclass(frozen=True, slots=True)
class FoundFile:
    """One file, or a directory that can't be read: its bytes, or why there are none. ``rank`` is the directory's place in the list."""

    path: Path
    rank: int = 0
    data: bytes = b""
    fault: str = ""


class Parsed(Protocol):
    """What files are made into: ``faults`` says in words what is wrong with which file."""

    @property
    def faults(self) -> Mapping[Path, str]: ...


T = TypeVar("T", bound=Parsed)


def look(directories: Sequence[Path], endings: tuple[str, ...]) -> tuple[FoundFile, ...]:
    """The files with these endings, directory by directory, by name. An absent directory has none. Blocks.

    Never raises for what is there: a file or directory that can't be read has a ``fault``.
    """
    found: list[FoundFile] = []
    for rank, directory in enumerate(directories):
        try:
            names = sorted(name for name in os.listdir(directory) if name.endswith(endings))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as exc:
            found.append(FoundFile(directory, rank, fault=exc.strerror or str(exc)))
            continue
        found += [file for name in names if (file := _read(directory / name, rank)) is not None]
    return tuple(found)


def _read(path: Path, rank: int) -> FoundFile | None:
    """None for a directory and for what went away meanwhile; O_NONBLOCK so that a fifo can't stop us."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            mode = os.fstat(descriptor).st_mode
            if stat.S_ISDIR(mode):
                return None
            if not stat.S_ISREG(mode):
                return FoundFile(path, rank, fault="is not a regular file")
            data = file.read(_LIMIT + 1)
    except IsADirectoryError:
        return None
    except FileNotFoundError:
        return FoundFile(path, rank, fault="is a link to nowhere") if path.is_symlink() else None
    except OSError as exc:
        return FoundFile(path, rank, fault=exc.strerror or str(exc))
    if len(data) > _LIMIT:
        return FoundFile(path, rank, fault=f"is larger than {_LIMIT} bytes")
    return FoundFile(path, rank, data)


class WatchedFiles(Generic[T]):
    """Keeps ``value``, which ``parse`` makes of the files in a worker thread. Made by ``open``; without directories it never changes."""

    def __init__(self, directories: Sequence[Path], endings: tuple[str, ...], parse: Callable[[Sequence[FoundFile]], T]) -> None:
        self._directories = tuple(directories)
        self._endings = endings
        self._parse = parse
        self._watch: DirectoryWatch | None = None
        self._blind = False
        self._looking = anyio.Lock()
        self._stale = bool(self._directories)
        self.value: T = parse(())

    @classmethod
    @asynccontextmanager
    async def open(
        cls, directories: Sequence[Path], endings: tuple[str, ...], parse: Callable[[Sequence[FoundFile]], T]
    ) -> AsyncIterator[WatchedFiles[T]]:
        """Watch and read the directories while the block is open. Never raises for what is in them."""
        files = cls(directories, endings, parse)
        try:
            if files._directories:
                files._begin()
            await files.fresh()
            yield files
        finally:
            files._end()

    async def fresh(self, *, again: bool = False) -> T:
        """The value as of now. ``again`` reads the files even if nothing told of a change (a link's target may have changed)."""
        if not self._directories:
            return self.value
        self._stale |= again or self._changed()
        if self._stale or self._looking.locked():
            async with self._looking:
                if self._stale:
                    await self._refresh()
        return self.value

    async def keep(self) -> None:
        """Refresh after each change, until cancelled, so that what is wrong is logged when it happens. A task of the server."""
        while self._watch is not None:
            await self._watch.wait_change()
            await anyio.sleep(_SETTLE)
            await self.fresh()

    async def _refresh(self) -> None:
        before = self.value.faults
        self._stale = False
        try:
            self.value = await run_sync(self._look)
        except BaseException:
            self._stale = True
            raise
        for path, fault in self.value.faults.items():
            if before.get(path) != fault:
                _logger.warning("%s: %s", path, fault)

    def _look(self) -> T:
        if self._watch is not None:
            try:
                self._watch.watch(self._directories)
            except OSError as exc:
                _logger.warning("no inotify watch (%s): looking at %s for each request", exc, ", ".join(map(str, self._directories)))
                self._blind = True  # the descriptor stays open: somebody may be waiting for it
        return self._parse(look(self._directories, self._endings))

    def _changed(self) -> bool:
        if self._watch is None:
            return True
        return self._watch.drain() or self._blind

    def _begin(self) -> None:
        try:
            self._watch = DirectoryWatch()
        except OSError as exc:
            _logger.warning("no inotify (%s): looking at %s for each request", exc, ", ".join(map(str, self._directories)))

    def _end(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.__exit__()
