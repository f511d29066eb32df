"""Finds out what a handler's shim can do here: what it says of itself, what others claim of it, and a trial container.

The answer is kept under the state root (gone at reboot) for the same binary and the same settings, so that a restart of the server
runs nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from anyio import to_thread

from bridge import log, probe_cache
from bridge.errors import BridgeError, HostError, RuntimeFailed, TimedOut
from bridge.host import cgroup_kill, cgroups, namespaces, process
from bridge.host.trial_bundle import MAPPING, exit_program, make_bundle, trial_spec
from bridge.host.user_namespaces import IdMaps, IdRange
from bridge.ports.runtime import Ability, Feature, RuntimeFeatures, SandboxKind, Support
from bridge.shimv2 import shim
from bridge.shimv2.runtime import ShimRuntime
from bridge.shimv2.task import ShimTask, Stdio

if TYPE_CHECKING:
    from bridge._proto.containerd.types import RuntimeInfo

Claims = Callable[[Mapping[str, Any] | None], Awaitable[Mapping[Ability, Feature]]]
"""Abilities that somebody who knows the shim's runtime claims, given the OCI features that ``-info`` told (None: it told none)."""
_VERSION = 2
_ALWAYS = (Ability.EXEC, Ability.TTY, Ability.SHARED_PID, Ability.UPDATE, Ability.CONTAINER_LIMITS)
_LISTED = (Ability.APPARMOR, Ability.SELINUX, Ability.RECURSIVE_READ_ONLY, Ability.IDMAPPED_MOUNTS, Ability.SYSTEMD_CGROUP)
_UNTOLD = Feature(Support.UNSUPPORTED, "the shim says nothing of it")

_logger = log.get("shimv2.probe")


async def no_claims(features: Mapping[str, Any] | None) -> Mapping[Ability, Feature]:
    """Nobody knows more."""
    del features
    return {}


async def probe(runtime: ShimRuntime, claims: Claims) -> RuntimeFeatures:
    """Probe the shim of ``runtime``. Raises Unsupported, RuntimeFailed or HostError with the reason why it can't be used here."""
    settings = runtime.settings
    cache = runtime.context.state_root / f"probe-{settings.handler}.json"
    identity = await to_thread.run_sync(_identity, runtime)
    known = await to_thread.run_sync(probe_cache.load, cache, identity)
    if known is not None:
        return known[0]
    info = await _info(runtime)
    verified = await trial(runtime) if settings.trial else "not tried: it would start a virtual machine"
    abilities = {ability: Feature(Support.SUPPORTED, verified) for ability in _ALWAYS}
    abilities |= dict.fromkeys((*_LISTED, Ability.PAUSE, Ability.CHECKPOINT, Ability.NET_DEVICES, Ability.RDT_SCHEMATA), _UNTOLD)
    abilities[Ability.PORT_FORWARD] = Feature(Support.SUPPORTED, "through the pod's network namespace")
    own = settings.own_cgroups
    abilities[Ability.STATS] = Feature(Support.SUPPORTED, "from the container's cgroup" if own else "as the shim says")
    abilities[Ability.SECCOMP] = Feature(Support.SUPPORTED, verified) if await to_thread.run_sync(_has_seccomp) else _UNTOLD
    abilities |= await claims(_features(info))
    abilities[Ability.USER_NAMESPACES] = await _user_namespaces(runtime)
    found = RuntimeFeatures(await _version(runtime, info), str(settings.binary.path), abilities)
    await to_thread.run_sync(probe_cache.save, cache, identity, found)
    _logger.info("handler %s: %s at %s", settings.handler, found.version, found.path)
    return found


async def _info(runtime: ShimRuntime) -> RuntimeInfo | None:
    try:
        return await runtime.settings.binary.info(runtime.settings.options)
    except BridgeError as exc:
        _logger.debug("handler %s: %s", runtime.settings.handler, exc)
        return None


def _features(info: RuntimeInfo | None) -> Mapping[str, Any] | None:
    if info is None or info.features is None:
        return None
    try:
        found = json.loads(info.features.value)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


async def _version(runtime: ShimRuntime, info: RuntimeInfo | None) -> str:
    path = runtime.settings.binary.path
    if info is not None and info.version is not None:
        return f"{info.name or path.name} {info.version.version}"
    done = await process.run([str(path), "-v"], env=runtime.settings.binary.environment(), timeout=runtime.settings.timeouts.probe)
    words = [line.strip() for line in done.stdout.decode(errors="replace").splitlines() if line.strip()]
    version = next((line.partition(":")[2].strip() for line in words if line.startswith("Version:")), words[0] if words else "")
    return f"{path.name} {version}".strip()


async def _user_namespaces(runtime: ShimRuntime) -> Feature:
    """Whether it runs a container in the user namespace of a pod."""
    if runtime.settings.kind is not SandboxKind.NAMESPACES:
        return Feature(Support.UNSUPPORTED, "not for pods that are more than namespaces")
    try:
        return Feature(Support.SUPPORTED, await trial(runtime, user_namespace=True))
    except (RuntimeFailed, HostError, TimedOut) as exc:
        return Feature(Support.UNSUPPORTED, exc.message)


async def trial(runtime: ShimRuntime, *, user_namespace: bool = False) -> str:
    """Run a throw-away container to its end. Returns how the verification was done; raises with why it did not run. Leaves nothing."""
    program = exit_program(platform.machine())
    if program is None:
        return f"claimed, not tried: there is no trial program for {platform.machine()}"
    settings = runtime.settings
    # The same in each trial of this server, which so ends what a killed one left, but not the trial of another server here.
    name = f"cri-bridge-trial-{settings.handler}-{hashlib.sha256(os.fsencode(settings.root)).hexdigest()[:8]}"
    place = Path(runtime.context.cache_dir) / f"probe-{settings.handler}"
    await to_thread.run_sync(shim.end_process, settings.binary.path, name)
    await _clear(place)
    try:
        pins = await _namespaces(place) if user_namespace else None
        path = f"system.slice:cri-bridge:{name}" if settings.systemd_cgroup else f"/{name}"
        await to_thread.run_sync(
            make_bundle, place / name, program, trial_spec(path, seccomp=await to_thread.run_sync(_has_seccomp), pins=pins)
        )
        await _run(runtime, name, place / name)
    finally:
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + settings.timeouts.probe):
            await _clear(place)
    return "a trial container ran in one" if user_namespace else "a trial container ran"


async def _run(runtime: ShimRuntime, name: str, bundle: Path) -> None:
    settings = runtime.settings
    held = await shim.start(runtime, name, name, bundle)
    task = ShimTask(held, name)
    created = False
    try:
        # The deadlines of real containers: a shim kills its runtime at the end of a call's time, and a busy host must not cost the handler.
        await task.create(bundle, settings.given(Stdio()), options=settings.options, timeout=settings.timeouts.create)
        created = True
        await task.start(timeout=settings.timeouts.start)
        with anyio.fail_after(settings.timeouts.start):
            status = await task.wait()
        if status.code:
            raise RuntimeFailed(handler=settings.handler, verb="trial run", exit_code=status.code, log_tail=await held.last_words())
    except TimeoutError as exc:
        raise TimedOut(f"handler {settings.handler!r}: the trial container did not end within {settings.timeouts.start:g} s") from exc
    finally:
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + 3 * settings.timeouts.kill):
            await _end(runtime, task, held, bundle, created=created)


async def _end(runtime: ShimRuntime, task: ShimTask, held: shim.Shim, bundle: Path, *, created: bool) -> None:
    """What can't be removed is told, and not taken for the shim's failure."""
    settings = runtime.settings
    try:
        if created:
            await task.delete(timeout=settings.timeouts.delete)
        await held.end()
        if not created:  # it may be half-way, as one that took too long
            await settings.binary.delete(task.id, bundle)
    except BridgeError as exc:
        _logger.info("the trial container can't be deleted: %s", exc)
    if not settings.systemd_cgroup:
        try:
            await to_thread.run_sync(_remove_cgroup, f"/{task.id}", settings.timeouts.kill)
        except (HostError, TimedOut) as exc:
            _logger.warning("the trial's cgroup can't be removed: %s", exc)


def _remove_cgroup(cgroup: str, timeout: float) -> None:
    for directory in cgroups.layout().directories(cgroup):
        cgroup_kill.kill_all(directory, timeout=timeout)
    cgroups.remove(cgroup)


async def _namespaces(place: Path) -> Mapping[str, Path]:
    ids = (IdRange(MAPPING[0]["containerID"], MAPPING[0]["hostID"], MAPPING[0]["size"]),)
    return await namespaces.create(place / "ns", net=True, ipc=True, uts=True, hostname="", sysctls={}, user=IdMaps(ids, ids))


def _make_place(place: Path) -> None:
    place.mkdir(exist_ok=True)
    place.chmod(0o711)  # whatever the umask: root of a user namespace is nobody here


async def _clear(place: Path) -> None:
    await namespaces.remove(place / "ns")
    await to_thread.run_sync(lambda: shutil.rmtree(place, ignore_errors=True))


def _has_seccomp() -> bool:
    return "Seccomp:" in Path("/proc/self/status").read_text()


def _identity(runtime: ShimRuntime) -> dict[str, Any]:
    """What must be unchanged for an old answer to hold."""
    settings = runtime.settings
    options = settings.options
    return {
        "v": _VERSION,
        "shim": [str(settings.binary.path), settings.binary.namespace, str(settings.kind), settings.systemd_cgroup, settings.per_container],
        "options": None if options is None else [options.type_url, options.value.hex()],
        "env": dict(settings.binary.env),
        **probe_cache.surroundings(settings.binary.path),
    }
