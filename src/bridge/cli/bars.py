"""How far a transfer is, for a person: a bar for each layer on a terminal, else a line when a layer is complete."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import IO, TYPE_CHECKING, Protocol, TypeVar

from bridge._proto.bridge.admin import v1 as admin
from bridge.cli.output import size

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_SHOWN = 12
_COMPLETE = ("done", "present")


class Bars(Protocol):
    """Shows progress."""

    def update(self, progress: admin.Progress) -> None:
        """As it is now."""
        ...

    def complete(self) -> None:
        """All went well, be it that the last news of some layers never came."""
        ...


class Nothing:
    """For --quiet."""

    def update(self, progress: admin.Progress) -> None:
        """Say nothing."""

    def complete(self) -> None:
        """Say nothing."""


class Lines:
    """A line for each layer once it is complete."""

    def __init__(self, to: IO[str]) -> None:
        self._to = to
        self._known: dict[str, admin.LayerProgress] = {}
        self._said: set[str] = set()

    def update(self, progress: admin.Progress) -> None:
        """Say what was not said yet."""
        for layer in progress.layers:
            self._known[layer.digest] = layer
            if layer.state in _COMPLETE:
                self._say(layer, layer.state)

    def complete(self) -> None:
        """The rest of them."""
        for layer in self._known.values():
            self._say(layer, "done")

    def _say(self, layer: admin.LayerProgress, state: str) -> None:
        if layer.digest not in self._said:
            self._said.add(layer.digest)
            print(f"{_name(layer)}  {size(layer.size)}  {state}", file=self._to, flush=True)


class Drawn:
    """A bar for each layer; those of an image that is finished stay."""

    def __init__(self, drawing: Progress) -> None:
        self._drawing = drawing
        self._tasks: dict[str, TaskID] = {}

    def update(self, progress: admin.Progress) -> None:
        """Move the bars; a layer that is new gets one."""
        for layer in progress.layers:
            task = self._tasks.get(layer.digest)
            if task is None:
                task = self._tasks[layer.digest] = self._drawing.add_task(_name(layer), total=None, state="")
            self._drawing.update(task, total=layer.size, completed=layer.done, state=layer.state)

    def complete(self) -> None:
        """Fill them."""
        for task in self._drawing.tasks:
            if task.fields["state"] not in _COMPLETE:
                self._drawing.update(task.id, completed=task.total, state="done")


@contextmanager
def bars(*, quiet: bool, to: IO[str] | None = None) -> Iterator[Bars]:
    """Something to ``update`` while the block runs; it writes to stderr, so that stdout has the result alone."""
    stream = to or sys.stderr
    if quiet:
        yield Nothing()
    elif not stream.isatty():
        yield Lines(stream)
    else:
        with _drawing(stream) as drawing:
            yield Drawn(drawing)


@contextmanager
def _drawing(stream: IO[str]) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        DownloadColumn(binary_units=True),
        TextColumn("{task.fields[state]}"),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=Console(file=stream, highlight=False)) as drawing:
        yield drawing


def _name(layer: admin.LayerProgress) -> str:
    return layer.digest.removeprefix("sha256:")[:_SHOWN]


class _Report(Protocol):
    @property
    def progress(self) -> admin.Progress | None: ...


R = TypeVar("R", bound=_Report)


async def last_of(replies: AsyncGenerator[R], quiet: bool) -> R:
    """The last of ``replies``, which has the result; the progress in the others is shown."""
    last: R | None = None
    with bars(quiet=quiet) as shown:
        async with aclosing(replies):
            async for last in replies:
                if last.progress is not None:
                    shown.update(last.progress)
        shown.complete()
    assert last is not None  # a call without an answer ends in an error
    return last
