"""The live registry of handlers (bridge.ports.handlers.Handlers): opens every configured one, and keeps why one can't be used.

A handler that can't be opened is disabled with its reason and never stops the server. Each handler's backend is entered and
left by one task of the registry, because what a plugin holds open (task groups, cancel scopes) belongs to a task. A handler that
leaves the configuration, or changes in it, is retired: new pods don't see it, the pods that were made on it keep it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import anyio
import anyio.abc

from bridge import handler_settings, log
from bridge.aio import describe
from bridge.errors import BridgeError, ConfigError, NotFound, Unavailable
from bridge.handler_settings import HandlerSettings, Reloaded
from bridge.isolation import GuardedBackend
from bridge.isolation_calls import Guard
from bridge.plugins import Plugins
from bridge.ports.handlers import HandlerPolicy, HandlerState, Opening
from bridge.ports.host import HostContext
from bridge.ports.runtime import RuntimeBackend

__all__ = ["HandlerRegistry", "HandlerSettings", "open_handlers"]

_logger = log.get("handlers")
_CLOSE_SECONDS = 10.0
"""How long the backends together may take to close."""
_OPEN_SECONDS = 45.0
"""How long the server waits for a plugin that opens a handler. It goes on without it then; one that is opened later is served."""
_OPENING = "it is still being opened"


@dataclass(slots=True)
class _Slot:
    settings: HandlerSettings
    policy: HandlerPolicy = field(default_factory=HandlerPolicy)
    backend: RuntimeBackend | None = None
    reason: str = _OPENING
    busy: bool = False
    closing: anyio.Event = field(default_factory=anyio.Event)


class HandlerRegistry:
    """See the module docstring. Made by ``open_handlers``."""

    def __init__(self, plugins: Plugins, default: str, context: HostContext, group: anyio.abc.TaskGroup) -> None:
        self._plugins = plugins
        self._default = default
        self._context = context
        self._group = group
        self._slots: dict[str, _Slot] = {}
        self._retired: list[_Slot] = []
        self._changing = anyio.Lock()
        self.next_tries: dict[str, float] = {}  # of disabled ones, on the loop's clock: see bridge.handler_retries

    @property
    def default(self) -> str:
        """Name of the handler for pods that name none."""
        return self._default

    @property
    def retired(self) -> Sequence[str]:
        """Names of handlers that serve earlier pods alone."""
        return [slot.settings.name for slot in self._retired]

    def backend(self, name: str, opening: Opening | None = None) -> RuntimeBackend:
        """See the port. NotFound lists those there are, and why others are disabled."""
        wanted = name or self._default
        slot = self._slot(wanted, opening)
        if slot is not None and slot.backend is not None:
            return slot.backend
        raise NotFound(self._missing(wanted, slot))

    def opening(self, name: str) -> Opening:
        """See the port."""
        self.backend(name)
        return self._slots[name or self._default].settings.opening()

    def _slot(self, name: str, opening: Opening | None) -> _Slot | None:
        """Whoever serves such pods; failing that the configured one of the name, if its plugin can read their records."""
        current = self._slots.get(name)
        if not opening:
            return current
        found = self._exact(name, opening)
        if found is None and current is not None and current.settings.plugin == opening.get("plugin"):
            return current
        return found

    def _exact(self, name: str, opening: Opening) -> _Slot | None:
        among = [*filter(None, [self._slots.get(name)]), *self._retired]
        return next((slot for slot in among if slot.settings.name == name and slot.settings.same_backend(opening)), None)

    def _missing(self, wanted: str, slot: _Slot | None) -> str:
        enabled = ", ".join(sorted(name for name, each in self._slots.items() if each.backend is not None)) or "none"
        if slot is not None:
            return f"runtime handler {wanted!r} is disabled: {slot.reason} (enabled handlers: {enabled})"
        disabled = "; ".join(f"{name}: {each.reason}" for name, each in sorted(self._slots.items()) if each.backend is None)
        return f"no runtime handler {wanted!r} (enabled handlers: {enabled}{'; disabled: ' + disabled if disabled else ''})"

    def policy(self, name: str, opening: Opening | None = None) -> HandlerPolicy:
        """See the port; with the annotations that its runtime takes from every pod. It is the configured one's, if the name still is."""
        wanted = name or self._default
        serving, chosen = self._slot(wanted, opening), self._slots.get(wanted)
        if serving is None:
            return HandlerPolicy()
        policy = (chosen or serving).policy
        own = () if serving.backend is None else serving.backend.features.annotations
        return replace(policy, allowed_annotations=(*policy.allowed_annotations, *own)) if own else policy

    def states(self) -> Sequence[HandlerState]:
        """Every configured handler, by name."""
        return [
            HandlerState(name, slot.settings.plugin, slot.backend.features)
            if slot.backend is not None
            else HandlerState(name, slot.settings.plugin, None, slot.reason, self.next_tries.get(name))
            for name, slot in sorted(self._slots.items())
        ]

    async def reopen(self, name: str, opening: Opening | None) -> RuntimeBackend:
        """See the port. What it opens is retired from the start: no new pod sees it."""
        async with self._changing:
            if opening and self._exact(name, opening) is None:
                slot = _Slot(handler_settings.of_opening(name, opening))
                await self._open([slot])
                if slot.backend is not None:
                    _logger.info("handler %s is open as pods of an earlier configuration need it", name)
                    self._retired.append(slot)
                else:
                    _logger.warning("handler %s can't be opened as its pods were made (%s)", name, slot.reason)
        try:
            return self.backend(name, opening)
        except NotFound as exc:  # disabled, perhaps for a moment: its runtime is being upgraded. What it runs goes on
            raise Unavailable(exc.message) from exc

    async def reload(self, settings: Sequence[HandlerSettings], default: str) -> Reloaded:
        """Serve new pods as ``settings`` say; earlier pods keep the backend they have.

        All of it is checked and opened first. Raises ConfigError, with a line for each fault, and then nothing has changed: for an
        option that is wrong, and for a handler that worked and would not any more. A new one that can't be opened is disabled.
        """
        async with self._changing:
            fresh: dict[str, _Slot] = {}
            for each in settings:
                old = self._slots.get(each.name)
                if old is None or not old.settings.same_backend(each.opening()):
                    fresh[each.name] = _Slot(each)
            policies = await self._checked(settings, fresh)
            await self._open(list(fresh.values()))
            broken = [(name, slot) for name, slot in fresh.items() if slot.backend is None and self._works(name)]
            if broken:
                for slot in fresh.values():
                    slot.closing.set()
                raise ConfigError("\n".join(f"runtime.handlers.{name}: {slot.reason}" for name, slot in broken))
            return self._swap(settings, default, fresh, policies)

    def _works(self, name: str) -> bool:
        return name in self._slots and self._slots[name].backend is not None

    async def _checked(self, settings: Sequence[HandlerSettings], fresh: Collection[str]) -> dict[str, HandlerPolicy]:
        """Every handler's policy. What can be judged without opening is judged of those that change."""
        policies, faults = {}, []
        for each in settings:
            try:
                policies[each.name] = await handler_settings.policy(each)
                if each.name in fresh:
                    self._plugins.options(self._plugins.runtime(each.plugin), each.options)
            except BridgeError as exc:
                faults.append(f"runtime.handlers.{each.name}: {exc}")
        if faults:
            raise ConfigError("\n".join(faults))
        return policies

    def _swap(
        self, settings: Sequence[HandlerSettings], default: str, fresh: dict[str, _Slot], policies: dict[str, HandlerPolicy]
    ) -> Reloaded:
        """Nothing here waits: no request sees a half of it."""
        old, self._slots, self._default = self._slots, {}, default
        for each in settings:
            slot = fresh.get(each.name) or old[each.name]
            slot.settings, slot.policy = each, policies[each.name]
            self._slots[each.name] = slot
        for name, slot in old.items():
            if self._slots.get(name) is not slot:
                self._retire(slot)
        names = [each.name for each in settings]
        gone = [name for name in old if name not in names]
        return Reloaded([name for name in names if name not in old], [name for name in fresh if name in old], gone)

    def _retire(self, slot: _Slot) -> None:
        if slot.backend is None:
            slot.closing.set()
        else:
            self._retired.append(slot)

    def close_unused(self, used: Collection[tuple[str, Opening]]) -> None:
        """Close the retired handlers that none of these (name, opening) needs."""
        for slot in tuple(self._retired):
            if not any(slot.settings.name == name and slot.settings.same_backend(opening) for name, opening in used):
                _logger.info("retired handler %s is closed: its last pod is gone", slot.settings.name)
                self._retired.remove(slot)
                slot.closing.set()

    async def reprobe(self) -> None:
        """Try again to open what is disabled, as a binary may have been installed meanwhile, and read base specs anew.

        Never raises for a handler.
        """
        async with self._changing:
            await self._open([slot for slot in self._slots.values() if slot.backend is None])
            for slot in self._slots.values():
                if slot.backend is not None:
                    await self._reread(slot)

    @property
    def disabled(self) -> Mapping[str, HandlerSettings]:
        """The configured handlers that can't be used and are not being opened now, by name."""
        return {name: slot.settings for name, slot in self._slots.items() if slot.backend is None and not slot.busy}

    async def retry(self, names: Collection[str]) -> None:
        """Try again to open these, as far as they are disabled. Never raises for a handler; a reload meanwhile has its own slots."""
        await self._open([slot for name, slot in self._slots.items() if name in names and slot.backend is None])

    async def _reread(self, slot: _Slot) -> None:
        try:
            slot.policy = await handler_settings.policy(slot.settings)
        except BridgeError as exc:
            _logger.error("handler %s goes on with the base spec that it has: %s", slot.settings.name, exc)

    async def _add(self, settings: Sequence[HandlerSettings]) -> None:
        for each in settings:
            self._slots[each.name] = _Slot(each)
        await self.reprobe()

    async def _open(self, slots: Sequence[_Slot]) -> None:
        """Open these in parallel and wait for them, but not for ever: a plugin that hangs is its own handler's fault."""
        waiting = []
        for slot in slots:
            if not slot.busy:
                waiting.append((slot, anyio.Event()))
                slot.busy = True
                self._group.start_soon(self._serve, *waiting[-1], name=f"handler {slot.settings.name}")
        with anyio.move_on_after(_OPEN_SECONDS):
            for _, settled in waiting:
                await settled.wait()
        for slot, settled in waiting:
            if not settled.is_set():
                slot.reason = f"plugin {slot.settings.plugin!r} is still opening it after {_OPEN_SECONDS:g} s"
                _logger.error("handler %s is disabled until then: %s", slot.settings.name, slot.reason)

    async def _serve(self, slot: _Slot, settled: anyio.Event) -> None:
        settings = slot.settings
        context = self._context if settings.timeouts is None else replace(self._context, timeouts=settings.timeouts)
        try:
            slot.policy = await handler_settings.policy(settings)
            plugin = self._plugins.runtime(settings.plugin)
            options = self._plugins.options(plugin, settings.options)
            async with plugin.open(settings.name, options, context) as backend:
                slot.backend = GuardedBackend(Guard(settings.name, settings.plugin, context.timeouts), backend)
                slot.reason = ""
                settled.set()
                await slot.closing.wait()
        except Exception as exc:  # noqa: BLE001 - a plugin's fault disables its handler, whatever it is
            why = str(exc) if isinstance(exc, BridgeError) else f"plugin {settings.plugin!r} failed: {describe(exc)}"
            if why != slot.reason:
                _logger.warning("handler %s is disabled: %s", settings.name, why)
            slot.reason = why
        finally:
            slot.backend, slot.busy = None, False
            settled.set()

    def _close(self) -> None:
        for slot in (*self._slots.values(), *self._retired):
            slot.closing.set()


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
            registry._close()
            group.cancel_scope.deadline = anyio.current_time() + _CLOSE_SECONDS
    if failure is not None:
        raise failure
