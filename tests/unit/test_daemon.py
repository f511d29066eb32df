"""What the composition root does around the server itself; the server is tried in tests/integration."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from bridge import daemon
from bridge.config import Config


@pytest.fixture
def collector() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


class Ended:
    """A server that is ready at once and has nothing to wind down."""

    async def wind_down(self, grace: float) -> None:
        assert grace > 0


@pytest.mark.usefixtures("collector")
async def test_the_collector_is_on_again_once_the_server_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, bool]] = []

    @asynccontextmanager
    async def running(config: Config) -> AsyncIterator[Ended]:
        told.append(("start", gc.isenabled()))
        yield Ended()

    def announce(state: str) -> None:
        told.append((state, gc.isenabled()))
        if state == "READY=1":
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(daemon, "running", running)
    monkeypatch.setattr(daemon, "announce", announce)
    monkeypatch.setattr(daemon, "_leave_after", lambda seconds: None)
    await daemon._serve(Config(), Config, gc.disable)
    assert told == [("start", False), ("READY=1", True), ("STOPPING=1", True)]
