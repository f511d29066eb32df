"""The live registry of handlers (bridge.ports.handlers.Handlers): opens every configured one, and keeps why one can't be used.

A handler that can't be opened is disabled with its reason and never stops the server. Each handler's backend is entered and
left by one task of the registry, because what a plugin holds open (task groups, cancel scopes) belongs to a task.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import anyio.abc

from bridge import log
from bridge.aio import describe
from bridge.core import base_spec
from bridge.errors import BridgeError, ConfigError, NotFound
from bridge.host import files
from bridge.plugins import Plugins
from bridge.ports.handlers import HandlerPolicy, HandlerState
from bridge.ports.host import HostContext, RuntimeTimeouts
from bridge.ports.runtime import RuntimeBackend

_logger = log.get("handlers")
_CLOSE_SECONDS = 10.0
"""How long the backends together may take to close."""
_BASE_SPEC_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class HandlerSettings:
    """One handler of the configuration. ``options`` are the plugin's own; ``timeouts`` None means the host's.

    ``allowed_annotations`` and the file ``base_spec`` make its HandlerPolicy.
    """

    name: str
    plugin: str
    options: Mapping[str, Any] = field(default_factory=dict)
    timeouts: RuntimeTimeouts | None = None
    allowed_annotations: tuple[str, ...] = ()
    base_spec: Path | None = None


async def _policy(settings: HandlerSettings) -> HandlerPolicy:
    if settings.base_spec is None:
        return HandlerPolicy(settings.allowed_annotations)
    text = await files.read_text(settings.base_spec, limit=_BASE_SPEC_BYTES)
    if not text:
        raise ConfigError(f"base_spec: {settings.base_spec} does not exist or is empty")
    try:
        return HandlerPolicy(settings.allowed_annotations, base_spec.parse(text))
    except ConfigError as exc:
        raise ConfigError(f"base_spec: {settings.base_spec}: {exc.message}") from exc


@dataclass(slots=True)
class _Slot:
    settings: HandlerSettings
    policy: HandlerPolicy = field(default_factory=HandlerPolicy)
    backend: RuntimeBackend | None = None
    reason: str = "it is still being opened"


class HandlerRegistry:
    """See the module docstring. Made by ``open_handlers``."""

    def __init__(self, plugins: Plugins, default: str, context: HostContext, group: anyio.abc.TaskGroup) -> None:
        self._plugins = plugins
        self._default = default
        self._context = context
        self._group = group
        self._slots: dict[str, _Slot] = {}
        self._closing = anyio.Event()
        self._probing = anyio.Lock()

    @property
    def default(self) -> str:
        """Name of the handler for pods that name none."""
        return self._default

    def backend(self, name: str) -> RuntimeBackend:
        """The backend of ``name`` ("" means the default). NotFound lists those there are, and why others are disabled."""
        wanted = name or self._default
        slot = self._slots.get(wanted)
        if slot is not None and slot.backend is not None:
            return slot.backend
        raise NotFound(self._missing(wanted, slot))

    def _missing(self, wanted: str, slot: _Slot | None) -> str:
        enabled = ", ".join(sorted(name for name, each in self._slots.items() if each.backend is not None)) or "none"
        if slot is not None:
            return f"runtime handler {wanted!r} is disabled: {slot.reason} (enabled handlers: {enabled})"
        disabled = "; ".join(f"{name}: {each.reason}" for name, each in sorted(self._slots.items()) if each.backend is None)
        return f"no runtime handler {wanted!r} (enabled handlers: {enabled}{'; disabled: ' + disabled if disabled else ''})"

    def policy(self, name: str) -> HandlerPolicy:
        """The policy of ``name`` ("" means the default), with the annotations that its runtime takes from every pod.

        No choices for a name that isn't configured.
        """
        slot = self._slots.get(name or self._default)
        if slot is None:
            return HandlerPolicy()
        own = () if slot.backend is None else slot.backend.features.annotations
        return replace(slot.policy, allowed_annotations=(*slot.policy.allowed_annotations, *own)) if own else slot.policy

    def states(self) -> Sequence[HandlerState]:
        """Every configured handler, by name."""
        return [
            HandlerState(
                name=name,
                plugin=slot.settings.plugin,
                features=None if slot.backend is None else slot.backend.features,
                disabled_reason="" if slot.backend is not None else slot.reason,
            )
            for name, slot in sorted(self._slots.items())
        ]

    async def reprobe(self) -> None:
        """Try again to open what is disabled, as a binary may have been installed meanwhile, and read base specs anew.

        Never raises for a handler.
        """
        async with self._probing:
            async with anyio.create_task_group() as waiters:
                for slot in self._slots.values():
                    if slot.backend is None:
                        waiters.start_soon(self._open, slot, name=f"open handler {slot.settings.name}")
                    else:
                        await self._reread(slot)

    async def _reread(self, slot: _Slot) -> None:
        try:
            slot.policy = await _policy(slot.settings)
        except BridgeError as exc:
            _logger.error("handler %s goes on with the base spec that it has: %s", slot.settings.name, exc)

    async def _add(self, settings: Sequence[HandlerSettings]) -> None:
        for each in settings:
            self._slots[each.name] = _Slot(each)
        await self.reprobe()

    async def _open(self, slot: _Slot) -> None:
        settled = anyio.Event()
        self._group.start_soon(self._serve, slot, settled, name=f"handler {slot.settings.name}")
        await settled.wait()

    async def _serve(self, slot: _Slot, settled: anyio.Event) -> None:
        settings = slot.settings
        context = self._context if settings.timeouts is None else replace(self._context, timeouts=settings.timeouts)
        try:
            slot.policy = await _policy(settings)
            plugin = self._plugins.runtime(settings.plugin)
            options = self._plugins.options(plugin, settings.options)
            async with plugin.open(settings.name, options, context) as backend:
                slot.backend, slot.reason = backend, ""
                settled.set()
                await self._closing.wait()
        except Exception as exc:  # noqa: BLE001 - a plugin's fault disables its handler, whatever it is
            slot.reason = str(exc) if isinstance(exc, BridgeError) else f"plugin {settings.plugin!r} failed: {describe(exc)}"
            _logger.warning("handler %s is disabled: %s", settings.name, slot.reason)
        finally:
            slot.backend = None
            settled.set()


@asynccontextmanager
async def open_handlers(
    plugins: Plugins, settings: Sequence[HandlerSettings], *, default: str, context: HostContext
) -> AsyncIterator[HandlerRegistry]:
    """Open every handler in parallel and serve them while the block is open. A handler that fails is disabled; this never raises for it."""
    failure: Exception | None = None
    async with anyio.create_task_group() as group:
        registry = HandlerRegistry(plugins, default, replace(context, adjust_spec=plugins.adjust_spec), group)
        await registry._add(settings)
        try:
            yield registry
        except Exception as exc:  # noqa: BLE001 - the caller's own, raised again below: the group would wrap it
            failure = exc
        finally:
            registry._closing.set()
            group.cancel_scope.deadline = anyio.current_time() + _CLOSE_SECONDS
    if failure is not None:
        raise failure
