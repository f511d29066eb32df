"""What a waiting command's answer says, and when its runtime is given up."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from bridge.monitor import waiting
from bridge.monitor.parameters import WaitCommand
from bridge.monitor.reaper import Reaper
from bridge.monitor.waiting import ExitWaiter, exit_code
from bridge.ports.runtime import ExitStatus


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b'{"id":"c1","exitStatus":7}\n', 7),
        (b'{"exitStatus":0}', 0),
        (b'{"exitStatus":true}', None),
        (b'{"exitStatus":256}', None),
        (b'{"exitStatus":"7"}', None),
        (b'{"id":"c1"}', None),
        (b"[7]", None),
        (b"7", None),
        (b"", None),
        (b"{", None),
    ],
)
def test_answers(text: bytes, code: int | None) -> None:
    assert exit_code(text) == code


async def told(argv: list[str], pidfd: int | None) -> ExitStatus:
    reaper = Reaper()
    reaper.start()
    found: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
    try:
        waiter = ExitWaiter(reaper, WaitCommand("c", argv, Path("/"), None), pidfd, found.set_result)
        status = await asyncio.wait_for(found, 20)
        waiter.close()
        return status
    finally:
        reaper.stop()


async def test_a_runtime_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(waiting, "_LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(waiting, "_FIRST_PAUSE", 0.01)
    own = os.pidfd_open(os.getpid())
    try:
        status = await told(["sh", "-c", "echo no such container >&2; exit 128"], own)
    finally:
        os.close(own)
    assert (status.code, status.reason) == (255, "ExitUnknown")
    assert "no such container" in caplog.text


async def test_a_command_that_cannot_be_run_counts_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_TRIES", 1)
    own = os.pidfd_open(os.getpid())
    try:
        assert (await told(["/nowhere"], own)).reason == "ExitUnknown"
    finally:
        os.close(own)


async def test_of_a_sandbox_that_is_gone_the_runtime_is_asked_once() -> None:
    assert (await told(["echo", '{"exitStatus":4}'], None)).code == 4
    status = await told(["false"], None)
    assert (status.code, status.reason) == (137, "SandboxDied")
