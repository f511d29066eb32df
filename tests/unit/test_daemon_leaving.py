"""A signal amid the start cancels it; once the server is ready, signals are no business of the start's any more."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator

import anyio
import pytest

from bridge import daemon_leaving


async def signals_of(*numbers: signal.Signals) -> AsyncIterator[signal.Signals]:
    for number in numbers:
        yield number
    await anyio.sleep_forever()


@pytest.fixture
def leaving(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    asked: list[float] = []
    monkeypatch.setattr(daemon_leaving, "leave_after", asked.append)
    return asked


async def test_a_start_that_hangs_is_given_up(leaving: list[float]) -> None:
    undone = False
    with anyio.fail_after(10):
        async with anyio.create_task_group() as whole:
            signals = signals_of(signal.SIGHUP, signal.SIGTERM)
            whole.start_soon(daemon_leaving.stop_early, signals, anyio.CancelScope(), whole.cancel_scope, 7.0)
            try:
                await anyio.sleep_forever()
            finally:
                undone = True
    assert undone
    assert leaving == [7.0], "and what does not end by then is left to the next start"


async def test_a_server_that_is_ready_takes_its_signals_itself(leaving: list[float]) -> None:
    starting = anyio.CancelScope()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as whole:
            whole.start_soon(daemon_leaving.stop_early, signals_of(), starting, whole.cancel_scope, 7.0)
            await anyio.wait_all_tasks_blocked()
            starting.cancel()
        assert not whole.cancel_scope.cancelled_caught
    assert leaving == []
