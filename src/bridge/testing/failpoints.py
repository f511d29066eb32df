"""Failpoints: every await of every path, without a line in the paths themselves.

A failpoint is a place where a coroutine of ours waits: what it awaited has had its effect and nothing was done with the result
yet. That is where a crash, a cancellation or an error hurts, and each journal stage is one, as a write is awaited. Nothing
marks them in the code, so none can be forgotten and none costs anything while they are off. Two ways to use them:

- ``interrupt(work, at, how)`` in a test of a plugin's own coroutines::

      for at in itertools.count(1):
          reached = await interrupt(lambda: backend.create_sandbox(spec), at, "fail")
          assert nothing_is_left()
          if not reached:
              break

- ``install(directory)`` in a whole server: ``cri-bridge serve`` does so when CRI_BRIDGE_FAILPOINTS names a directory, and
  ``Control(directory)`` in another process says what is to happen. The sweep of scripts/test-crash works so.

A point is named ``module:function:line``, with ``#n`` when the same task comes there for the n-th time; see ``place_of``. "Ours" is
all of cri-bridge, and every installed plugin's package (by the entry points of bridge.plugins).
"""

from __future__ import annotations

import asyncio
import functools
import gc
import json
import os
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import AsyncGeneratorType
from typing import Any, Literal

import anyio

from bridge import log
from bridge.errors import HostError
from bridge.plugins import ENTRY_POINTS

INJECTED = "injected failure"
ENVIRONMENT = "CRI_BRIDGE_FAILPOINTS"
_POLL = 0.003
_OCCURRENCES = 3  # a loop that comes to one place a thousand times is interrupted at its first turns only
_STEPS = frozenset(("async_generator_asend", "async_generator_athrow"))
_OWN = frozenset((__name__, "bridge.log"))
_NEVER_FAIL = frozenset(("Lock.acquire", "Event.wait", "Semaphore.acquire", "Condition.wait", "sleep"))
_logger = log.get("failpoints")

How = Literal["cancel", "fail"]


async def _nothing(_place: str) -> BaseException | None:
    return None


@dataclass(frozen=True, slots=True)
class Watcher:
    """What is done at each wait: ``begun`` when it begins, ``ended`` when what was awaited has succeeded.

    Both get the place. What ``ended`` returns is raised in place of the result.
    """

    begun: Callable[[str], object] = lambda _place: None
    ended: Callable[[str], Awaitable[BaseException | None]] = _nothing


class Watched:
    """Drives ``work`` under the eyes of a watcher. Await it once."""

    def __init__(self, work: Awaitable[Any], watcher: Watcher) -> None:
        self._work = work
        self._watcher = watcher

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._work.__await__()
        error: BaseException | None = None
        while True:
            try:
                waited_for = steps.throw(error) if error is not None else next(steps)
            except StopIteration as end:
                return end.value
            place, error = place_of(self._work), None
            self._watcher.begun(place)
            try:
                yield waited_for
                error = yield from self._watcher.ended(place).__await__()
            except BaseException as exc:  # noqa: BLE001 - handed on to the work
                error = exc


def place_of(work: Any) -> str:
    """Where the innermost coroutine of ours in ``work`` waits; "" when none does.

    It ends with "~" where nothing but a cancellation can come out of the wait: it is for a lock, an event or a time.
    """
    found, quiet = "", ""
    while work is not None:
        frame = getattr(work, "cr_frame", None) or getattr(work, "gi_frame", None) or getattr(work, "ag_frame", None)
        if frame is not None:
            module = str(frame.f_globals.get("__name__", ""))
            if module.partition(".")[0] in _packages() and module not in _OWN:
                found, quiet = f"{module}:{frame.f_code.co_qualname}:{frame.f_lineno}", ""
            elif frame.f_code.co_qualname in _NEVER_FAIL:
                quiet = "~"
        work = _inner(work)
    return found and found + quiet


@functools.cache
def _packages() -> frozenset[str]:
    """The top-level packages whose coroutines are ours."""
    return frozenset(("bridge", *(point.module.partition(".")[0] for point in metadata.entry_points(group=ENTRY_POINTS))))


def _inner(work: Any) -> Any:
    """What ``work`` waits for. A step of an async generator, as entering a context manager is one, only refers to its generator."""
    if type(work).__name__ in _STEPS:
        return next((each for each in gc.get_referents(work) if isinstance(each, AsyncGeneratorType)), None)
    return getattr(work, "cr_await", None) or getattr(work, "gi_yieldfrom", None) or getattr(work, "ag_await", None)


async def interrupt(work: Callable[[], Awaitable[Any]], at: int, how: How) -> bool:
    """Run ``work`` and interfere with its ``at``-th wait; whether it had so many.

    "cancel" cancels a scope around it amid the wait, as a shutdown does. "fail" lets what was awaited finish and then raises HostError
    in its place (unless nothing there can fail), as an operation that had its effect and failed all the same. What else ``work``
    raises comes out.
    """
    waits = 0
    with anyio.CancelScope() as scope:

        def begun(_place: str) -> None:
            nonlocal waits
            waits += 1
            if waits == at and how == "cancel":
                scope.cancel()

        async def ended(place: str) -> BaseException | None:
            task = asyncio.current_task()
            cancelled = task is not None and task.cancelling() > 0
            fails = waits == at and how == "fail" and not cancelled and not place.endswith("~")
            return HostError(INJECTED) if fails else None

        try:
            await Watched(work(), Watcher(begun, ended))
        except HostError as exc:
            if INJECTED not in str(exc):  # whoever met it may have said where
                raise
    return waits >= at


class Control:
    """What a test and the server agree on: a directory with the plan, the list of points and what happened.

    ``record`` has the server list the points it passes; ``arm`` has it hold (``fail``: raise) at one of them, once. ``held`` tells that it
    does, ``release`` lets it go on; a plan that nobody came to is taken back by ``disarm``.
    """

    def __init__(self, directory: Path) -> None:
        self._plan, self._hit, self._go = (directory / name for name in ("plan.json", "hit", "go"))
        self._points = directory / "points"

    def record(self) -> None:
        """From now on."""
        self._points.unlink(missing_ok=True)
        self._write({"how": "record"})

    def points(self) -> Sequence[str]:
        """Those passed since ``record``, in the order of the first passage."""
        return list(dict.fromkeys(self._points.read_text().split())) if self._points.exists() else []

    def arm(self, point: str, *, fail: bool = False) -> None:
        """Hold, or fail, at ``point``."""
        for path in (self._hit, self._go):
            path.unlink(missing_ok=True)
        self._write({"how": "fail" if fail else "hold", "point": point})

    def disarm(self) -> None:
        """Nothing is to happen any more; who is held goes on."""
        self._go.touch()
        self._plan.unlink(missing_ok=True)

    release = disarm

    @property
    def held(self) -> bool:
        """Whether somebody came to the point."""
        return self._hit.exists()

    def _write(self, plan: dict[str, str]) -> None:
        fresh = self._plan.with_suffix(".new")
        fresh.write_text(json.dumps({**plan, "id": secrets.token_hex(4)}))
        fresh.rename(self._plan)

    # The server's side.

    def plan(self) -> dict[str, str]:
        """What is to happen now; nothing without a plan."""
        try:
            return dict(json.loads(self._plan.read_text()))
        except FileNotFoundError:
            return {}

    def passed(self, point: str) -> None:
        """The server came to ``point`` while it records."""
        with self._points.open("a") as points:
            points.write(f"{point}\n")

    async def reached(self, how: str, point: str) -> BaseException | None:
        """The server came to the point of the plan: once."""
        self._plan.unlink(missing_ok=True)
        self._hit.write_text(point)
        if how == "fail":
            return HostError(f"{INJECTED} at {point}")
        while not self._go.exists():  # noqa: ASYNC110 - the event is another process's
            await asyncio.sleep(_POLL)
        return None


def install(directory: str) -> Control:
    """Watch every task that the running loop starts from now on, under the control of ``directory``."""
    control = Control(Path(directory))
    _logger.warning("failpoints are on, controlled by %s: this server is under test", directory)

    def factory(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        return asyncio.Task(_watched(work, control), loop=loop, **options)

    asyncio.get_running_loop().set_task_factory(factory)
    return control


async def _watched(work: Awaitable[Any], control: Control) -> Any:
    seen: Counter[str] = Counter()
    plan: dict[str, str] = {}

    async def ended(place: str) -> BaseException | None:
        nonlocal plan
        if not place:
            return None
        before, plan = plan, control.plan()
        if not plan:
            return None
        if before.get("id") != plan["id"]:  # turns are counted from when something is to happen: a loop may be old by then
            seen.clear()
        seen[place] += 1
        if seen[place] > _OCCURRENCES:
            return None
        point = place if seen[place] == 1 else f"{place}#{seen[place]}"
        if plan["how"] == "record":
            control.passed(point)
        elif plan.get("point") == point:
            return await control.reached(plan["how"], point)
        return None

    return await Watched(work, Watcher(ended=ended))


async def watched_if_asked(main: Awaitable[None]) -> None:
    """Run ``main`` watched, with all that it starts, as the environment says; it is taken out of it, so that no child is watched."""
    directory = os.environ.pop(ENVIRONMENT, "")
    await (_watched(main, install(directory)) if directory else main)
