"""Structured-concurrency pieces that the whole project shares, on anyio.

Four things only. SingleFlight: work owned by the daemon, joined by callers. Rollback: acquire on one line, undo on the next. Supervisor:
the daemon's named background tasks. Broadcast: a change feed with bounded queues. This module knows nothing of pods.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import anyio
import anyio.abc

from bridge import log
from bridge.errors import LimitExceeded, Unavailable

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
_logger = log.get("aio")


class Supervisor:
    """Owner of the daemon's tasks. Enter it once; ``spawn`` named tasks; leaving cancels them.

    A supervised task that raises is logged with its name and ends; it never takes its siblings down.
    """

    def __init__(self, name: str = "daemon") -> None:
        self._name = name
        self._group: anyio.abc.TaskGroup | None = None
        self._closing = False

    async def __aenter__(self) -> Self:
        self._group = anyio.create_task_group()
        await self._group.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> bool | None:
        self._closing = True
        assert self._group is not None
        self._group.cancel_scope.cancel()
        if isinstance(exc, Exception):  # tasks raise nothing, so the body's error comes out as it is, not in a group
            await self._group.__aexit__(None, None, None)
            return None
        return await self._group.__aexit__(kind, exc, tb)

    def spawn(self, name: str, work: Callable[[], Awaitable[object]]) -> None:
        """Run ``work`` as task ``name``. Raises Unavailable once the supervisor is closing."""
        if self._group is None or self._closing:
            raise Unavailable(f"{self._name} is shutting down")
        self._group.start_soon(self._guard, name, work, name=name)

    async def _guard(self, name: str, work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        except Exception:
            _logger.exception("task %s failed", name)


class _Flight(Generic[T]):
    __slots__ = ("done", "error", "left_at", "result", "scope", "waiters")

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.error: BaseException | None = None
        self.result: T | None = None
        self.scope = anyio.CancelScope()
        self.waiters = 0
        self.left_at: float | None = None  # when the last waiter left; None while one waits


class SingleFlight(Generic[K, T]):
    """At most one run of the work per key; every caller of a key waits for the same run (design promise 1).

    A caller's cancellation or deadline only makes that caller leave. With ``linger`` = math.inf (the default) the work
    goes on without waiters; with a finite ``linger`` (seconds) it is cancelled that long after its last waiter left.
    The exception of a flight reaches its waiters, never the supervisor. Nothing is cached once a flight has landed.
    """

    def __init__(self, supervisor: Supervisor, name: str, *, linger: float = math.inf) -> None:
        self._supervisor = supervisor
        self._name = name
        self._linger = linger
        self._flights: dict[K, _Flight[T]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, key: object) -> bool:
        return key in self._flights

    async def join(self, key: K, work: Callable[[], Awaitable[T]]) -> T:
        """The result of the running flight of ``key``, or of ``work`` started now as that flight."""
        flight = self._flights.get(key)
        if flight is None:
            flight = _Flight()
            self._flights[key] = flight
            try:
                self._supervisor.spawn(f"{self._name} {key}", lambda: self._fly(key, flight, work))
            except BaseException:
                del self._flights[key]
                raise
        flight.waiters += 1
        flight.left_at = None
        try:
            await flight.done.wait()
        finally:
            flight.waiters -= 1
            if not flight.waiters and not flight.done.is_set() and math.isfinite(self._linger):
                flight.left_at = left_at = anyio.current_time()
                with suppress(Unavailable):  # the supervisor is closing and cancels the flight itself
                    self._supervisor.spawn(f"{self._name} {key} linger", lambda: self._abandon(flight, left_at))
        if flight.error is not None:
            raise flight.error.with_traceback(None)
        return flight.result  # type: ignore[return-value]

    async def cancel(self, key: K) -> None:
        """Cancel the flight of ``key`` and wait until its undo steps have run; none in the air is success."""
        flight = self._flights.get(key)
        if flight is not None:
            flight.scope.cancel()
            await flight.done.wait()

    async def wait_idle(self) -> None:
        """Return once no flight is in the air (used at shutdown, under the caller's deadline)."""
        while self._flights:
            await next(iter(self._flights.values())).done.wait()

    def cancel_all(self) -> None:
        """Cancel every flight; their undo steps still run under their own deadlines."""
        for flight in self._flights.values():
            flight.scope.cancel()

    async def _abandon(self, flight: _Flight[T], left_at: float) -> None:
        with anyio.move_on_after(self._linger):
            await flight.done.wait()
        if flight.left_at == left_at:  # nobody came since; else whoever left last has a task of his own
            flight.scope.cancel()

    async def _fly(self, key: K, flight: _Flight[T], work: Callable[[], Awaitable[T]]) -> None:
        try:
            with flight.scope:
                flight.result = await work()
            if flight.scope.cancelled_caught:
                flight.error = Unavailable(f"{self._name} {key} was cancelled")
        except Exception as exc:  # noqa: BLE001 - handed to the waiters
            flight.error = exc
        except BaseException:
            flight.error = Unavailable(f"{self._name} {key} was cancelled: the server is shutting down")
            raise
        finally:
            self._flights.pop(key, None)
            flight.done.set()


class Rollback:
    """Undo steps of a multi-step acquisition (house rule 6).

    Use as ``async with Rollback("run pod") as undo``: after each acquisition ``undo.push("release ip", release)``; call
    ``undo.commit()`` last. On any exit without commit every step runs, newest first, each shielded with its own
    deadline; a step's failure is logged and the next one still runs; the original error is the one that propagates.
    """

    def __init__(self, name: str, *, step_timeout: float = 30.0) -> None:
        self._name = name
        self._timeout = step_timeout
        self._steps: list[tuple[str, Callable[[], Awaitable[object]], float]] = []
        self._committed = False
        self._failures: list[str] = []

    async def __aenter__(self) -> Self:
        return self

    @property
    def failures(self) -> Sequence[str]:
        """The undo steps that failed so far, each with its reason: what a step that runs last has to know."""
        return self._failures

    def push(self, name: str, undo: Callable[[], Awaitable[object]], *, timeout: float | None = None) -> None:
        """Register ``undo``; ``timeout`` in seconds bounds it (default: the rollback's ``step_timeout``)."""
        self._steps.append((name, undo, self._timeout if timeout is None else timeout))

    def commit(self) -> None:
        """Keep everything: no undo step will run."""
        self._committed = True

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if self._committed:
            return
        while self._steps:
            name, undo, timeout = self._steps.pop()
            with anyio.CancelScope(shield=True, deadline=anyio.current_time() + timeout) as scope:
                try:
                    await undo()
                except Exception as error:  # noqa: BLE001 - every step must run
                    self._failures.append(f"{name}: {error}")
                    _logger.error("%s: undo step %r failed: %s", self._name, name, error)
            if scope.cancelled_caught:
                self._failures.append(f"{name}: it did not end within {timeout:g} s")
                _logger.error("%s: undo step %r did not end within %g s", self._name, name, timeout)


class Subscription(Generic[T]):
    """One subscriber's bounded queue. Iterate it; ends with LimitExceeded if the subscriber fell behind."""

    def __init__(self, limit: int, overflowed: Callable[[], None] | None) -> None:
        self._send, self._receive = anyio.create_memory_object_stream[T](limit)
        self._tell = overflowed
        self._overflowed = False

    def _offer(self, item: T) -> None:
        try:
            self._send.send_nowait(item)
        except anyio.WouldBlock:
            self._overflowed = True
            self._send.close()
            if self._tell is not None:
                self._tell()
        except (anyio.ClosedResourceError, anyio.BrokenResourceError):
            pass

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        try:
            return await self._receive.receive()
        except anyio.EndOfStream:
            if self._overflowed:
                raise LimitExceeded("the subscriber fell behind and missed events; subscribe again and list anew") from None
            raise StopAsyncIteration from None


class Broadcast(Generic[T]):
    """A change feed: ``publish`` never waits; each subscriber has its own bounded queue and can't hold others up."""

    def __init__(self, *, limit: int = 1024) -> None:
        self._limit = limit
        self._subscriptions: set[Subscription[T]] = set()

    def __len__(self) -> int:
        """How many subscribers there are."""
        return len(self._subscriptions)

    def behind(self) -> int:
        """How many items wait for the slowest subscriber."""
        return max((each._receive.statistics().current_buffer_used for each in self._subscriptions), default=0)

    def publish(self, item: T) -> None:
        """Offer ``item`` to every subscriber; one whose queue is full is ended (see Subscription)."""
        for subscription in tuple(self._subscriptions):
            subscription._offer(item)

    @asynccontextmanager
    async def subscribe(self, first: Iterable[T] = (), overflowed: Callable[[], None] | None = None) -> AsyncIterator[Subscription[T]]:
        """A subscription that sees ``first``, then everything published while the block is open.

        ``overflowed`` is called at once when the subscriber has fallen behind, for one that hangs where it can't see the queue's end.
        """
        subscription: Subscription[T] = Subscription(self._limit, overflowed)
        for item in first:
            subscription._offer(item)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            subscription._send.close()
            subscription._receive.close()


async def run_all(works: Iterable[Callable[[], Awaitable[object]]]) -> None:
    """Run every work at once and wait for all; a failure does not stop the others. Then the first failure is raised."""
    failures: list[Exception] = []

    async def run(work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        except Exception as exc:  # noqa: BLE001 - raised below, once all have ended
            failures.append(exc)

    async with anyio.create_task_group() as group:
        for work in works:
            group.start_soon(run, work)
    for extra in failures[1:]:
        _logger.error("further failure: %s", describe(extra))
    if failures:
        raise failures[0]


def describe(exc: BaseException) -> str:
    """One line for logs: class and message, with exception groups flattened."""
    if isinstance(exc, BaseExceptionGroup):
        inner: Any = "; ".join(describe(e) for e in exc.exceptions)
        return f"{type(exc).__name__}({inner})"
    return f"{type(exc).__name__}: {exc}"
