"""The plugin interface: how a distribution announces a runtime, and how it is loaded and checked.

A plugin is a module with pluggy hook implementations, named by an entry point of group ``cri_bridge.runtimes``::

    from bridge.plugins import API_VERSION, RuntimePlugin, hookimpl

    @hookimpl
    def bridge_register_runtime() -> RuntimePlugin:
        return RuntimePlugin(name="runc", options=RuncOptions, open=open_runc, api=1)

Hooks announce, classes work: the contract of a runtime is bridge.ports.runtime. A plugin that can't be loaded, or whose hook
fails, harms only itself; why is kept for the handlers that name it.
"""

from __future__ import annotations

import copy
import difflib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import pluggy
import pydantic

from bridge import __version__, log
from bridge.aio import describe
from bridge.errors import ConfigError
from bridge.plugin_facts import API_VERSION, Found, check_version, explain, wanted
from bridge.ports.host import HostContext
from bridge.ports.runtime import RuntimeBackend

_SLOW_SECONDS, _TOO_SLOW_SECONDS = 0.25, 5.0
"""A hook that takes so long is named in the log, and is not called again: the whole server waits for it."""
__all__ = ["API_VERSION", "Found", "Plugins", "RuntimePlugin", "hookimpl"]

ENTRY_POINTS = "cri_bridge.runtimes"
_PROJECT = "cri_bridge"
_FURTHER_HOOKS = ("bridge_adjust_spec", "bridge_pod_event")

hookspec = pluggy.HookspecMarker(_PROJECT)
hookimpl = pluggy.HookimplMarker(_PROJECT)
_logger = log.get("plugins")


class OpenBackend(Protocol):
    """Opens a handler: ``name`` is the handler's, ``options`` an instance of the plugin's own model.

    The backend serves while the block is open. What it raises while opening (a class of bridge.errors) is the reason why the
    handler is disabled; containers must outlive the block.
    """

    def __call__(self, name: str, options: Any, context: HostContext, /) -> AbstractAsyncContextManager[RuntimeBackend]: ...


class ConformanceLimits(Protocol):
    """Known limits of a runtime: spec of ``cri-bridge conform`` → why it can't pass, for these options and the runtime's version text."""

    def __call__(self, options: Any, version: str, /) -> Mapping[str, str]: ...


@dataclass(frozen=True, slots=True)
class RuntimePlugin:
    """What a plugin announces. ``api`` is the API_VERSION it was written for, as a literal number.

    For ``cri-bridge conform``: ``conformance_limits``, and ``own_paths``, directories outside the server's own that the runtime
    leaves as it found them.
    """

    name: str
    options: type[pydantic.BaseModel]
    open: OpenBackend
    api: int
    conformance_limits: ConformanceLimits | None = None
    own_paths: Sequence[Path] = ()


class RuntimeHooks:
    """The hooks. All are called in the server's event loop and must not block."""

    @hookspec
    def bridge_register_runtime(self) -> RuntimePlugin:  # type: ignore[empty-body]  # a specification: pluggy never calls it
        """Announce a runtime. Called once, when the server starts."""

    @hookspec
    def bridge_adjust_spec(self, spec: dict[str, Any], pod: Mapping[str, Any], container: Mapping[str, Any]) -> dict[str, Any] | None:
        """Change a container's OCI spec before its handler gets it.

        ``spec`` is a copy of one's own; return the spec to use, or None to leave it. ``pod`` has id, name, namespace, uid,
        handler, cgroup_parent, labels, annotations; ``container`` has id.
        """

    @hookspec
    def bridge_pod_event(self, event: Mapping[str, Any]) -> None:
        """Told of a pod or container that changed: kind, pod, container (or ""), at_ns. The return value is ignored."""


class Plugins:
    """The loaded plugins: runtimes by name, and why others can't be used."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(_PROJECT)
        self._manager.add_hookspecs(RuntimeHooks)
        self._runtimes: dict[str, RuntimePlugin] = {}
        self._faults: dict[str, str] = {}
        self._origins: dict[str, str] = {}
        self._points: dict[str, metadata.EntryPoint] = {}

    @property
    def found(self) -> Sequence[Found]:
        """Every installed plugin, usable or not, by its entry point's name."""
        return [self._found(point) for _, point in sorted(self._points.items())]

    def _found(self, point: metadata.EntryPoint) -> Found:
        runtimes = tuple(sorted(name for name, origin in self._origins.items() if origin == point.name))
        hooks = [name for name in _FURTHER_HOOKS if self._implementations(name, point.name)]
        faults = [fault for name, fault in self._faults.items() if name == point.name or name.startswith(f"{point.name}:")]
        dist = point.dist
        return Found(
            name=point.name,
            module=point.value,
            distribution="" if dist is None else dist.name,
            version="" if dist is None else dist.version,
            wants=wanted(point),
            runtimes=runtimes,
            api=self._runtimes[runtimes[0]].api if runtimes else 0,
            hooks=tuple(hooks),
            fault="; ".join(faults),
        )

    @property
    def faults(self) -> Mapping[str, str]:
        """Name of a plugin (or entry point) → why it, or one of its hooks, is not used."""
        return dict(self._faults)

    @property
    def runtimes(self) -> tuple[str, ...]:
        """Names of the usable runtimes."""
        return tuple(sorted(self._runtimes))

    def load_entry_points(self) -> None:
        """Load every installed plugin. One that fails is a fault; it never raises."""
        for point in sorted(metadata.entry_points(group=ENTRY_POINTS), key=lambda p: p.name):
            self._points[point.name] = point
            try:
                module = point.load()
            except Exception as exc:  # noqa: BLE001 - foreign code: any failure is that plugin's own
                asked = wanted(point)
                hint = f" (this is cri-bridge {__version__}, its distribution wants {asked!r})" if asked else ""
                self._fault(point.name, f"its module {point.value} can't be loaded: {describe(exc)}{hint}")
                continue
            self.register(module, name=point.name)

    def register(self, plugin: object, *, name: str) -> None:
        """Add a module or object with hook implementations. What is wrong with it becomes a fault; it never raises."""
        try:
            self._manager.register(plugin, name=name)
            self._manager.check_pending()
            for implementation in self._implementations("bridge_register_runtime", name):
                runtime = self._check(implementation.function())
                self._runtimes[runtime.name], self._origins[runtime.name] = runtime, name
        except ValueError as exc:  # pluggy's, before it changed anything
            self._fault(name, f"it is registered twice: {exc}")
        except Exception as exc:  # noqa: BLE001 - foreign code: any failure is that plugin's own
            if self._manager.is_registered(plugin):
                self._manager.unregister(plugin)
            self._fault(name, str(exc) if isinstance(exc, ConfigError | pluggy.PluginValidationError) else describe(exc))

    def _fault(self, name: str, reason: str) -> None:
        self._faults[name] = reason
        _logger.error("plugin %s is disabled: %s", name, reason)

    def _implementations(self, hook: str, name: str | None = None) -> list[pluggy.HookImpl]:
        found: list[pluggy.HookImpl] = getattr(self._manager.hook, hook).get_hookimpls()
        return [each for each in found if name is None or each.plugin_name == name]

    def _check(self, runtime: object) -> RuntimePlugin:
        if not isinstance(runtime, RuntimePlugin):
            raise ConfigError(f"bridge_register_runtime returned {type(runtime).__name__}, not a RuntimePlugin")
        check_version(runtime.api)
        if not runtime.name or not isinstance(runtime.name, str):
            raise ConfigError("RuntimePlugin.name must be a non-empty string")
        if runtime.name in self._runtimes:
            raise ConfigError(f"another plugin has already announced a runtime named {runtime.name!r}")
        if not (isinstance(runtime.options, type) and issubclass(runtime.options, pydantic.BaseModel)):
            raise ConfigError("RuntimePlugin.options must be a pydantic model class")
        if runtime.options.model_config.get("extra") != "forbid":
            raise ConfigError('RuntimePlugin.options must refuse unknown options: give it model_config = ConfigDict(extra="forbid")')
        if not callable(runtime.open):
            raise ConfigError("RuntimePlugin.open must be callable")
        return runtime

    def runtime(self, name: str) -> RuntimePlugin:
        """The runtime ``name``. Raises ConfigError that lists those there are and tells why this one is not."""
        if name in self._runtimes:
            return self._runtimes[name]
        if name in self._faults:
            raise ConfigError(f"plugin {name!r} can't be used: {self._faults[name]}")
        known = ", ".join(sorted(self._runtimes)) or "none"
        near = difflib.get_close_matches(name, self._runtimes, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"is cri-bridge-{name} installed, and new enough to have it?"
        raise ConfigError(f"no plugin serves {name!r} (there are: {known}); {hint}")

    def options(self, plugin: RuntimePlugin, given: Mapping[str, Any]) -> pydantic.BaseModel:
        """``given`` as the plugin's model. Raises ConfigError naming each wrong option, and the nearest right name of an unknown one."""
        try:
            return plugin.options.model_validate(dict(given))
        except pydantic.ValidationError as exc:
            raise ConfigError("; ".join(explain(error, plugin.options) for error in exc.errors())) from exc

    def adjust_spec(self, spec: Mapping[str, Any], pod: Mapping[str, Any], container: Mapping[str, Any]) -> Mapping[str, Any]:
        """``spec`` after every bridge_adjust_spec. An implementation that fails, or returns no dict, is not called again."""
        adjusted = spec
        for _, changed in self.adjustments(spec, pod, container):
            adjusted = changed
        return adjusted

    def adjustments(
        self, spec: Mapping[str, Any], pod: Mapping[str, Any], container: Mapping[str, Any]
    ) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """The same step by step: each plugin with this hook, and the spec after it."""
        for implementation in self._implementations("bridge_adjust_spec"):
            own = copy.deepcopy(dict(spec))
            changed = self._call(implementation, "bridge_adjust_spec", dict, spec=own, pod=pod, container=container)
            spec = spec if changed is None else changed
            yield str(implementation.plugin_name), spec

    def pod_event(self, event: Mapping[str, Any]) -> None:
        """Tell every bridge_pod_event. One that fails is not called again."""
        for implementation in self._implementations("bridge_pod_event"):
            self._call(implementation, "bridge_pod_event", object, event=event)

    def _call(self, implementation: pluggy.HookImpl, hook: str, expected: type, **values: Any) -> Any:
        """Call one implementation with the arguments it takes; None when it failed, which disables this hook of this plugin alone."""
        began = time.monotonic()
        try:
            result = implementation.function(*(values[name] for name in implementation.argnames))
            seconds = time.monotonic() - began
            if seconds >= _TOO_SLOW_SECONDS:
                raise TimeoutError(f"it held the whole server up for {seconds:.1f} s: hooks must not block")
            if seconds >= _SLOW_SECONDS:
                _logger.warning("plugin %s: %s held the whole server up for %.2f s", implementation.plugin_name, hook, seconds)
            if result is not None and not isinstance(result, expected):
                raise TypeError(f"it returned {type(result).__name__}, not {expected.__name__} or None")
            return result
        except Exception as exc:  # noqa: BLE001 - foreign code: any failure is that plugin's own
            getattr(self._manager.hook, hook)._remove_plugin(implementation.plugin)
            self._fault(f"{implementation.plugin_name}:{hook}", f"its hook failed: {describe(exc)}")
            return None
