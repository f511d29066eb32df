"""How containers are ended."""

from __future__ import annotations

import time
from typing import Any

import anyio

from bridge._proto.runtime import v1 as pb
from bridge.testing.conformance.catalogue import spec
from bridge.testing.conformance.node import USR1_IMAGE
from bridge.testing.conformance.stage import RUNNING, Stage

_TRAPS = "trap 'exit 11' USR1; trap 'exit 12' USR2; trap 'exit 13' TERM; echo up; while :; do sleep 0.05; done"
_STUBBORN = "trap '' TERM; echo up; while :; do sleep 0.05; done"


@spec("CRI StopContainer; image config StopSignal; CRI ContainerConfig.stop_signal", quick=True)
async def stop_signals(stage: Stage) -> None:
    """A stop sends SIGTERM, the image's signal, or the one that the request names, and the container's own exit code is told"""
    pod = await stage.pod()
    cases: list[tuple[str, dict[str, Any], int]] = [
        ("term", {}, 13),
        ("image", {"image": pb.ImageSpec(image=USR1_IMAGE)}, 11),
        ("asked", {"stop_signal": pb.Signal.SIGUSR2}, 12),
    ]
    for name, changes, code in cases:
        container = await stage.started(pod, _TRAPS, name=name, **changes)
        await stage.log(pod, name)
        await stage.stop(container, int(stage.patience))
        assert (await stage.status(container)).exit_code == code, f"{name}: {await stage.status(container)}"


@spec("CRI StopContainer.timeout", quick=True)
async def stop_of_the_stubborn(stage: Stage) -> None:
    """A container that ignores SIGTERM is killed when its grace period is over, and not before"""
    pod = await stage.pod()
    container = await stage.started(pod, _STUBBORN)
    await stage.log(pod)
    began = time.monotonic()
    await stage.stop(container, 2)
    took = time.monotonic() - began
    status = await stage.status(container)
    assert status.exit_code == 137, status
    assert took >= 1.9, f"it was killed after {took:.1f} of 2 seconds"


@spec("cri-o#8748: a stop with a long grace period must not hold a shorter one")
async def shorter_stop(stage: Stage) -> None:
    """A second stop with a shorter grace period shortens the first"""
    pod = await stage.pod()
    container = await stage.started(pod, _STUBBORN)
    await stage.log(pod)
    async with anyio.create_task_group() as group:
        group.start_soon(stage.stop, container, 3600)
        await anyio.sleep(0.3)
        assert (await stage.status(container)).state is RUNNING
        await stage.stop(container, 0)
    assert (await stage.status(container)).exit_code == 137


@spec("CRI StopContainer.timeout 0")
async def stop_at_once(stage: Stage) -> None:
    """A stop without a grace period kills, with every process that the container has"""
    pod = await stage.pod()
    container = await stage.started(pod, f"for i in 1 2 3; do setsid sh -c '{_STUBBORN.replace(chr(39), '')}' & done; {_STUBBORN}")
    await stage.log(pod)
    await stage.stop(container, 0)
    assert (await stage.status(container)).exit_code == 137
