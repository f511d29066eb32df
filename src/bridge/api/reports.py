"""Answers of a streaming RPC while its work runs: how far it is, several times a second, and at the end the result."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Generic, TypeVar

import anyio

T = TypeVar("T")
R = TypeVar("R")
_SECONDS = 0.2
"""Between two looks: often enough for a bar to move, rarely enough to cost nothing."""


class _Outcome(Generic[T]):
    def __init__(self) -> None:
        self.done = anyio.Event()
        self.result: T | None = None
        self.error: Exception | None = None

    async def run(self, work: Callable[[], Awaitable[T]]) -> None:
        try:
            self.result = await work()
        except Exception as exc:  # noqa: BLE001 - raised by the generator, outside the task group
            self.error = exc
        self.done.set()


async def reported(
    work: Callable[[], Awaitable[T]], look: Callable[[], R], finish: Callable[[T], R], *, every: float = _SECONDS
) -> AsyncGenerator[R]:
    """``look()`` now and then while ``work`` runs, an answer only when it changed; last ``finish`` of its result, or its exception.

    Closing the generator cancels ``work`` and waits for its end; it must be closed in the task that iterates it.
    """
    outcome: _Outcome[T] = _Outcome()
    left, shown = False, None
    async with anyio.create_task_group() as group:
        group.start_soon(outcome.run, work)
        while not outcome.done.is_set():
            with anyio.move_on_after(every):
                await outcome.done.wait()
            if outcome.done.is_set() or (now := look()) == shown:
                continue
            try:
                yield now
            except GeneratorExit:  # a task group would wrap it
                left = True
                group.cancel_scope.cancel()
                break
            shown = now
    if left:
        return
    if outcome.error is not None:
        raise outcome.error
    yield finish(outcome.result)  # type: ignore[arg-type]
