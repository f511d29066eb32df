"""What an operator or a device vendor adds to a container's spec: the handler's base spec, CDI devices, hooks from directories.

In this order, after the request's own spec was built; plugins adjust what comes out. A container that uses none of it pays one
read of an inotify descriptor for the hooks, and nothing where there is no directory for them.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from bridge import log
from bridge.core import base_spec, cdi, cdi_edits, hooks
from bridge.core.cdi import CdiDevices
from bridge.core.hooks import PRECREATE, Hook, HookFiles
from bridge.core.spec_annotations import withheld
from bridge.core.spec_devices import in_user_namespace
from bridge.core.spec_inputs import ContainerInputs
from bridge.core.spec_process import DEFAULT_PATH
from bridge.errors import HostError, TimedOut, Unsupported
from bridge.host import process
from bridge.host.watched_files import WatchedFiles
from bridge.ports.handlers import Handlers
from bridge.ports.runtime import Ability

Spec = dict[str, Any]

_logger = log.get("core.injections")
_PRECREATE_SECONDS = 30.0
_INSIDE = "startContainer"
"""How long a precreate hook without a timeout of its own may take."""
_SPEC_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Sources:
    """The watched directories of CDI specs and of hooks."""

    cdi: WatchedFiles[CdiDevices]
    hooks: WatchedFiles[HookFiles]

    @classmethod
    def none(cls) -> Sources:
        """Without any directory."""
        return cls(WatchedFiles((), (), cdi.parse_all), WatchedFiles((), (), hooks.parse_all))


@dataclass(frozen=True, slots=True)
class Injections:
    """See the module docstring."""

    handlers: Handlers
    sources: Sources

    async def apply(self, spec: Spec, inputs: ContainerInputs) -> Spec:
        """``spec`` with all that is added to it. Raises InvalidRequest, Unsupported (a CDI device), HostError (a precreate hook)."""
        final = spec
        async for _, changed in self.steps(spec, inputs):
            final = changed
        return final

    async def steps(self, spec: Spec, inputs: ContainerInputs, *, programs: bool = True) -> AsyncIterator[tuple[str, Spec]]:
        """Who added to ``spec``, and what came of it, one after the other. Without ``programs`` precreate hooks are named, not run."""
        policy = self.handlers.policy(inputs.sandbox.handler, inputs.sandbox.opening)
        barred = withheld(inputs.config.annotations, policy.allowed_annotations)
        if barred:
            option = f"runtime.handlers.{inputs.sandbox.handler}.allowed_annotations"
            _logger.warning("%s doesn't allow the annotations %s: the runtime is not told of them", option, ", ".join(sorted(barred)))
        if policy.base_spec is not None:
            owned = in_user_namespace(inputs.sandbox)
            spec = base_spec.lay_over(policy.base_spec, spec, inputs.config.security, user_namespace=owned)
            yield "the handler's base spec", spec
        wanted = cdi.requested(inputs.config)
        if wanted:
            spec = await self._devices(spec, inputs, wanted)
            yield f"CDI devices {', '.join(wanted)}", spec
        known = await self.sources.hooks.fresh()
        if known.hooks:
            async for step in self._hooks(spec, inputs, known, programs):
                yield step

    async def _devices(self, spec: Spec, inputs: ContainerInputs, wanted: Mapping[str, str]) -> Spec:
        devices = await self.sources.cdi.fresh()
        if devices.missing(wanted):
            devices = await self.sources.cdi.fresh(again=True)  # the target of a link may have changed, which nothing tells
        edits = devices.resolve(wanted)
        field = ", ".join(dict.fromkeys(wanted.values()))
        features = self.handlers.backend(inputs.sandbox.handler, inputs.sandbox.opening).features
        if edits.nodes and (why := features.lacks(Ability.DEVICES)) is not None:
            raise Unsupported(f"{field}: handler {inputs.sandbox.handler!r} can't do the CDI edit deviceNodes ({why})")
        for ability, needed, what in (
            (Ability.NET_DEVICES, edits.net_devices, "netDevices"),
            (Ability.RDT_SCHEMATA, {"schemata", "enableMonitoring"} & set(edits.rdt or ()), "intelRdt.schemata or enableMonitoring"),
        ):
            if needed and not features.has(ability):
                raise Unsupported(f"{field}: handler {inputs.sandbox.handler!r} can't do the CDI edit {what}")
        nodes = await cdi_edits.completed(edits.nodes, field)
        mapped = features.has(Ability.IDMAPPED_MOUNTS)
        return cdi_edits.apply(spec, edits, nodes, user_namespace=in_user_namespace(inputs.sandbox), id_mapped=mapped)

    async def _hooks(self, spec: Spec, inputs: ContainerInputs, known: HookFiles, programs: bool) -> AsyncIterator[tuple[str, Spec]]:
        annotations = {**inputs.config.annotations, **inputs.sandbox.config.annotations}
        matching = known.matching(spec["process"]["args"][0], annotations, bool(inputs.config.mounts))
        staged = hooks.staged(matching)
        features = self.handlers.backend(inputs.sandbox.handler, inputs.sandbox.opening).features
        inside = [str(hook.path) for hook in matching if _INSIDE in hook.stages]
        why = features.lacks(Ability.START_CONTAINER_HOOKS)
        if inside and why is not None:
            raise Unsupported(f"hook {inside[0]}: handler {inputs.sandbox.handler!r} can't run it in the container ({why})")
        if staged:
            spec = {**spec, "hooks": cdi_edits.with_hooks(spec.get("hooks") or {}, staged)}
            yield "OCI hooks", spec
        for hook in matching:
            if PRECREATE in hook.stages:
                spec = await precreated(spec, hook) if programs else spec
                yield f"precreate hook {hook.path}", spec


async def precreated(spec: Spec, hook: Hook) -> Spec:
    """``spec`` as a precreate hook returns it: it reads it from stdin and writes what it makes of it to stdout.

    Raises HostError with what the hook said when it fails, does not end in time or answers no spec.
    """
    path, args = hook.hook["path"], hook.hook.get("args") or [hook.hook["path"]]
    env = {"PATH": DEFAULT_PATH, **dict(entry.split("=", 1) for entry in hook.hook.get("env", ()) if "=" in entry)}
    timeout = float(hook.hook.get("timeout", _PRECREATE_SECONDS))
    try:
        # args[0] is what the program sees as its name, which a file to execute can't be told here: it gets its path.
        done = await process.run([path, *args[1:]], input=json.dumps(spec).encode(), env=env, timeout=timeout, max_output=_SPEC_BYTES)
    except (HostError, TimedOut) as exc:
        raise HostError(f"precreate hook {hook.path}: {exc.message}") from exc
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[-2000:] or "it said nothing"
        raise HostError(f"precreate hook {hook.path}: {path} failed (exit code {done.returncode}): {said}")
    try:
        changed = json.loads(done.stdout)
        if not isinstance(changed["process"]["args"], list) or not isinstance(changed["linux"], dict):
            raise TypeError("process.args and linux must be there")
    except (ValueError, KeyError, TypeError) as exc:
        raise HostError(f"precreate hook {hook.path}: {path} answered no OCI spec: {exc}") from exc
    _logger.debug("precreate hook %s %s", hook.path, "left the spec as it was" if changed == spec else "changed the spec")
    return dict(changed)
