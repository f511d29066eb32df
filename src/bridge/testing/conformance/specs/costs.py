"""What a pod costs on this handler: time to start, memory and CPU beside its workload. Measured, not judged."""

from __future__ import annotations

import statistics
import time

import anyio
from anyio.to_thread import run_sync

from bridge.testing.conformance.catalogue import spec
from bridge.testing.conformance.footprint import Footprint, footprint
from bridge.testing.conformance.stage import Stage

_STARTS = 12
_PODS = 5
_IDLE_SECONDS = 2.0
WORKLOAD = "123456789"
"""Argument of the workload's ``sleep``, by which its own process is told from what serves it."""


@spec("RuntimeClass; Kubernetes' pod start SLO counts from here", timeout=300)
async def start_time(stage: Stage) -> None:
    """Time from RunPodSandbox to a started container, one pod after the other"""
    run, whole = [], []
    for number in range(_STARTS + 2):
        began = time.monotonic()
        pod = await stage.pod()
        made = time.monotonic()
        await stage.started(pod)
        ended = time.monotonic()
        await stage.stop_pod(pod)
        await stage.remove_pod(pod)
        if number >= 2:  # the first ones find cold caches
            run.append((made - began) * 1000)
            whole.append((ended - began) * 1000)
    p95 = sorted(whole)[int(len(whole) * 0.95)]
    stage.measured |= {"start_ms": statistics.median(whole), "start_p95_ms": p95, "run_ms": statistics.median(run), "pods": _STARTS}
    stage.note(
        f"start: p50 {statistics.median(whole):.0f} ms, p95 {p95:.0f} ms of {_STARTS}; RunPodSandbox alone {statistics.median(run):.0f} ms"
    )


@spec("RuntimeClass overhead.podFixed (KEP-688)", timeout=300)
async def overhead(stage: Stage) -> None:
    """Memory and CPU of all that exists because of a pod, but its workload"""
    if not stage.node.private:
        stage.not_here("the server is not the suite's own, so others' pods can't be told from these")
    warm = await stage.pod()
    await stage.started(warm)
    await stage.remove_pod(warm)
    before = await _seen(stage)
    for _ in range(_PODS):
        await stage.started(await stage.pod(), ["sleep", WORKLOAD])
    after = await _seen(stage)
    await anyio.sleep(_IDLE_SECONDS)
    later = await _seen(stage)
    memory = max(0, (after.pss - before.pss) // _PODS)
    millicores = max(0.0, (later.cpu_seconds - after.cpu_seconds) / _IDLE_SECONDS * 1000 / _PODS)
    workload = after.workload // _PODS
    stage.measured |= {"memory_bytes": float(memory), "cpu_millicores": millicores}
    stage.note(
        f"overhead of a pod: {memory / (1 << 20):.1f} MiB, {millicores:.1f} millicores; its workload on the host: {workload >> 10} KiB"
    )


async def _seen(stage: Stage) -> Footprint:
    """What server, monitor and pods take, once that has come to rest."""
    await anyio.sleep(0.5)
    pids = await stage.node.pids()
    return await run_sync(lambda: footprint(stage.node.scope(pids), WORKLOAD))
