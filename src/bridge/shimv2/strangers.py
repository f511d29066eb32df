"""What this server's earlier life started behind shims and no record owns: found by its marks, ended with the help of its shims."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread

from bridge import log
from bridge.errors import BridgeError
from bridge.shimv2 import exits, shim
from bridge.shimv2.runtime import ShimRuntime
from bridge.shimv2.task import ShimTask

_KILL = 9
_logger = log.get("shimv2.strangers")


async def remove(runtime: ShimRuntime, known: Callable[[str], bool]) -> Sequence[str]:
    """End what ``known`` disowns, containers before shims; returns their ids."""
    marks = await runtime.marks()
    removed = []
    for ident, mark in sorted(marks.items(), key=lambda item: item[1]["bundle"] == item[1]["shim"]):
        if known(ident):
            continue
        try:
            await _remove(runtime, ident, mark)
        except BridgeError as exc:
            _logger.error("%s, which no record owns, can't be ended: %s", ident[:13], exc)
        else:
            removed.append(ident)
    return removed


async def _remove(runtime: ShimRuntime, ident: str, mark: Mapping[str, str]) -> None:
    bundle, shim_bundle = Path(mark["bundle"]), Path(mark["shim"])
    held = await shim.load(runtime, ident if bundle == shim_bundle else mark["sandbox"], shim_bundle)
    oci = await to_thread.run_sync(_container, bundle)
    if held is not None and (oci is not None or await held.is_alive()):
        task = ShimTask(held, ident)
        try:
            await task.kill(_KILL, everyone=True)
            with anyio.move_on_after(runtime.settings.timeouts.kill):
                await task.wait()
        except BridgeError as exc:  # it or its shim has ended, or it is no container but a shim
            _logger.debug("%s: %s", ident[:13], exc)
        if oci is None:
            await exits.free(runtime, held, ident, bundle)
        else:
            await exits.free_unfinished(runtime, held, ident, bundle, runtime.cgroup(oci))
    elif oci is not None:
        await exits.clean_up(runtime, ident, bundle)
    if bundle == shim_bundle:
        if held is not None:
            await held.end()
        else:
            await to_thread.run_sync(shim.end_process, runtime.settings.binary.path, ident)
            await shim.forget_log(runtime, ident)
    await exits.let_go(runtime, ident, None)
    await runtime.unmark(ident)


def _container(bundle: Path) -> Mapping[str, Any] | None:
    """The spec of what is to run in a bundle; None where nothing is, as that of a pod's shim may be for the shim alone."""
    try:
        oci: Mapping[str, Any] = json.loads((bundle / "config.json").read_text())
    except (OSError, ValueError):
        return None
    return oci if "process" in oci else None
