"""Disabled handlers are tried again by themselves, with pauses that grow, and at once when their program changes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic import BaseModel, ConfigDict

from bridge import handler_retries
from bridge.errors import NotFound, TimedOut
from bridge.handler_retries import keep_trying
from bridge.handlers import HandlerRegistry, HandlerSettings, open_handlers
from bridge.plugins import Plugins, RuntimePlugin, hookimpl
from tests.unit.test_handlers import CONTEXT, FEATURES, Backend


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid")
    path: str = ""


class SlowPlugin:
    """Its probe times out until ``well`` is set."""

    def __init__(self) -> None:
        self.well = False
        self.tries = 0

    @hookimpl
    def bridge_register_runtime(self) -> RuntimePlugin:
        return RuntimePlugin(name="slow", options=Options, open=self.open, api=1)

    @asynccontextmanager
    async def open(self, name: str, options: Any, context: object) -> AsyncIterator[Any]:
        self.tries += 1
        if not self.well:
            raise TimedOut(f"{name} --version did not end within 10 s")
        yield Backend()


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler_retries, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(handler_retries, "_FIRST_PAUSE", 0.01)


@pytest.fixture
def slow() -> SlowPlugin:
    return SlowPlugin()


@asynccontextmanager
async def serving(slow: SlowPlugin, path: str = "") -> AsyncIterator[HandlerRegistry]:
    plugins = Plugins()
    plugins.register(slow, name="slow")
    settings = [HandlerSettings("busy", "slow", {"path": path} if path else {})]
    async with open_handlers(plugins, settings, default="busy", context=CONTEXT) as registry:
        async with anyio.create_task_group() as group:
            group.start_soon(keep_trying, registry, plugins)
            yield registry
            group.cancel_scope.cancel()


async def until(condition: Any) -> None:
    with anyio.fail_after(20):
        while not condition():
            await anyio.sleep(0.002)


async def test_a_probe_that_timed_out_is_repeated_until_it_works(
    slow: SlowPlugin, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(handler_retries, "_LONGEST_PAUSE", 0.02)
    async with serving(slow) as registry:
        (state,) = registry.states()
        assert "did not end within 10 s" in state.disabled_reason
        with pytest.raises(NotFound, match="is disabled"):
            registry.backend("busy")
        await until(lambda: slow.tries > 3)
        (state,) = registry.states()
        assert state.next_try is not None, "Status tells when it is tried again"
        slow.well = True
        await until(lambda: registry.states()[0].features is FEATURES)
        assert registry.states()[0].next_try is None
        assert registry.backend("busy").features is FEATURES
        tries = slow.tries
        await until(lambda: not registry.next_tries)
        assert slow.tries == tries, "what works is left alone"
    said = [line for line in caplog.messages if line.startswith("handler busy is disabled")]
    assert len(said) == 1, "the same reason is told once"


async def test_pauses_grow(slow: SlowPlugin, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    def pauses() -> list[Any]:
        return [record.args[1] for record in caplog.records if "next try" in record.msg and isinstance(record.args, tuple)]

    async with serving(slow):
        await until(lambda: len(pauses()) >= 4)
    assert pauses()[:4] == [0.02, 0.04, 0.08, 0.16]


async def test_a_program_that_changed_is_tried_at_once(slow: SlowPlugin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(handler_retries, "_FIRST_PAUSE", 3600)
    program = tmp_path / "runtime"
    async with serving(slow, str(program)) as registry:
        await until(lambda: slow.tries == 2)
        await until(lambda: (registry.states()[0].next_try or 0) > anyio.current_time() + 100)
        slow.well = True
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        await until(lambda: registry.states()[0].features is not None)
        assert slow.tries == 3
