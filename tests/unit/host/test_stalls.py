from __future__ import annotations

import logging
import threading

import anyio
import pytest

from bridge.host import stalls


class Listener(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.told = threading.Event()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
        self.told.set()


@pytest.fixture
def listener() -> Listener:
    return Listener()


def block_the_loop(until: threading.Event) -> bool:
    return until.wait(30)


async def test_who_holds_the_loop_up_is_named_while_it_lasts(listener: Listener) -> None:
    stalls._logger.addHandler(listener)
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: stalls.watch(patience=0.5))
            await anyio.wait_all_tasks_blocked()
            assert block_the_loop(listener.told), "told although the loop stands still"
            listener.told.clear()
            with anyio.fail_after(20):
                while len(listener.messages) < 2:
                    await anyio.sleep(0.01)
            group.cancel_scope.cancel()
    finally:
        stalls._logger.removeHandler(listener)
    assert "held up for" in listener.messages[0]
    assert "block_the_loop (" in listener.messages[0]
    assert "goes on after" in listener.messages[1]


async def test_a_loop_that_goes_on_is_left_alone(listener: Listener) -> None:
    stalls._logger.addHandler(listener)
    try:
        with anyio.move_on_after(0.2):
            await stalls.watch(patience=30)
    finally:
        stalls._logger.removeHandler(listener)
    assert listener.messages == []
