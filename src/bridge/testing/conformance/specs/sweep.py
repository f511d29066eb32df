"""The server is killed at several moments of each call; the kubelet's retry must succeed and nothing be left."""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, TypeVar

import anyio
from grpclib.const import Status

from bridge.client import CriError
from bridge.testing.conformance.catalogue import spec
from bridge.testing.conformance.stage import RUNNING, Stage

T = TypeVar("T")
_MOMENTS = 4
_SEED = 20260


async def _answered(stage: Stage, call: Callable[[], Awaitable[T]]) -> T:
    """The answer, asked for again while the server is away, as a kubelet does."""
    with anyio.fail_after(stage.patience * 2):
        while True:
            try:
                return await call()
            except CriError as exc:
                if exc.code is not Status.UNAVAILABLE:
                    raise
            await anyio.sleep(0.02)


async def _interrupted(stage: Stage, call: Callable[[], Awaitable[T]], after: float) -> T:
    """What ``call`` comes to when the server is killed ``after`` seconds of it, and started again."""
    answers: list[T] = []

    async def ask() -> None:
        with suppress(CriError):
            answers.append(await call())

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await anyio.sleep(after)
        await stage.node.kill()
    await stage.node.start()
    return answers[0] if answers else await _answered(stage, call)


class _Around(Protocol):
    """Makes a call, and what is to happen meanwhile."""

    async def __call__(self, name: str, call: Callable[[], Awaitable[T]], /) -> T: ...


async def _life(stage: Stage, around: _Around) -> None:
    """A pod from its request to its removal, each call made through ``around``."""
    config = stage.pod_config()
    pod = await around("RunPodSandbox", lambda: stage.pod(config=config))
    stage.configs[pod] = config
    container = await _running(stage, pod, await around("CreateContainer", lambda: stage.create(pod)), around)
    with suppress(CriError):  # a command that was interrupted is not made again; another must go through
        await around("ExecSync", lambda: stage.exec(container, "sleep 0.05; echo out"))
    assert await stage.output(container, "echo again") == "again"
    await around("StopContainer", lambda: stage.stop(container, 0))
    assert (await stage.status(container)).exit_code in (137, 255)
    await around("RemoveContainer", lambda: stage.remove(container))
    await around("StopPodSandbox", lambda: stage.stop_pod(pod))
    await around("RemovePodSandbox", lambda: stage.remove_pod(pod))
    for answer in (await stage.cri.runtime.list_pod_sandbox()).items:
        assert answer.id != pod, "a removed pod is listed"


async def _running(stage: Stage, pod: str, container: str, around: _Around) -> str:
    """Start it; when the server died in the midst of that, the kubelet makes another one of what was lost."""
    try:
        await around("StartContainer", lambda: stage.start(container))
    except CriError as exc:
        if exc.code is not Status.FAILED_PRECONDITION:
            raise
    status = await stage.status(container)
    if status.state is RUNNING:
        return container
    assert status.reason in ("ContainerLost", "StartError", "MonitorLost"), f"a start that was interrupted came to {status}"
    return await stage.started(pod, attempt=1)


CALLS = (
    "RunPodSandbox",
    "CreateContainer",
    "StartContainer",
    "ExecSync",
    "StopContainer",
    "RemoveContainer",
    "StopPodSandbox",
    "RemovePodSandbox",
)


class _Stopwatch:
    """Lets calls through and notes how long each took."""

    def __init__(self) -> None:
        self.took: dict[str, float] = {}

    async def __call__(self, name: str, call: Callable[[], Awaitable[T]], /) -> T:
        began = time.monotonic()
        answer = await call()
        self.took[name] = time.monotonic() - began
        return answer


@dataclass(frozen=True)
class _Killer:
    """Kills the server ``after`` seconds of the call ``victim``."""

    stage: Stage
    victim: str
    after: float

    async def __call__(self, name: str, call: Callable[[], Awaitable[T]], /) -> T:
        return await (_interrupted(self.stage, call, self.after) if name == self.victim else call())


async def _sweep(stage: Stage, calls: tuple[str, ...], moments: int) -> None:
    stopwatch = _Stopwatch()
    await _life(stage, stopwatch)
    chance = random.Random(_SEED)  # noqa: S311 - moments, not secrets
    for victim in calls:
        for moment in range(moments):
            after = stopwatch.took[victim] * (moment + chance.random()) / moments
            try:
                await _life(stage, _Killer(stage, victim, after))
            except (AssertionError, CriError) as exc:
                raise AssertionError(f"the server was killed {after * 1000:.0f} ms after the beginning of {victim}: {exc}") from exc
    stage.note(f"{len(calls) * moments} kills in {', '.join(calls)}")


@spec("kill -9 of the server at any moment: journal before effect", kills=True, timeout=600)
async def kills_at_every_call(stage: Stage) -> None:
    """The server is killed at several moments of every call: the call made again succeeds and nothing is left"""
    await _sweep(stage, CALLS, _MOMENTS)


@spec("kill -9 of the server at any moment: journal before effect", kills=True, quick=True, timeout=120)
async def kills_at_the_start(stage: Stage) -> None:
    """The server is killed while a pod and its container start: the calls made again succeed and nothing is left"""
    await _sweep(stage, ("RunPodSandbox", "StartContainer"), 1)
