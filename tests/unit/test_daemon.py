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
from bridge.errors import HostError
from bridge.host.service_manager import ServiceManager


@pytest.fixture
def collector() -> Iterator[None]:
    yield
    gc.unfreeze()
    gc.enable()


class Ended:
    """A server that is ready at once and has nothing to wind down; its reload raises ``failure``."""

    def __init__(self, failure: Exception | None) -> None:
        self._failure = failure

    async def reload(self, read: object) -> None:
        assert read is Config
        if self._failure is not None:
            raise self._failure

    async def wind_down(self, grace: float) -> None:
        assert grace > 0


@pytest.mark.usefixtures("collector")
@pytest.mark.parametrize("failure", [None, HostError("no descriptor left"), RuntimeError("which no code should raise")])
async def test_what_the_manager_is_told_and_when_the_collector_works(monkeypatch: pytest.MonkeyPatch, failure: Exception | None) -> None:
    """Whatever becomes of a reload: the server goes on until it is told to end."""
    told: list[tuple[str, bool]] = []

    @asynccontextmanager
    async def running(config: Config, manager: ServiceManager) -> AsyncIterator[Ended]:
        told.append(("start", gc.isenabled()))
        yield Ended(failure)

    def announce(manager: ServiceManager, *lines: str) -> None:
        told.append((lines[0], gc.isenabled()))
        if lines == ("READY=1",):
            os.kill(os.getpid(), ending.pop(0))

    ending = [signal.SIGHUP, signal.SIGTERM]
    monkeypatch.setattr(daemon, "running", running)
    monkeypatch.setattr(ServiceManager, "announce", announce)
    monkeypatch.setattr(daemon, "leave_after", lambda seconds: None)
    gc.disable()
    await daemon._serve(Config(), Config)
    assert told == [("start", False), ("READY=1", True), ("RELOADING=1", True), ("READY=1", True), ("STOPPING=1", True)]
