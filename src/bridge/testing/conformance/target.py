"""What is to be tested: a handler of a configuration, or of a server that runs already."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bridge.config import Config, Handler
from bridge.config_files import load
from bridge.errors import ConfigError
from bridge.plugins import Plugins, RuntimePlugin


@dataclass(frozen=True, slots=True)
class Target:
    """The handler ``name`` as ``handler`` configures it, with ``config`` for all else (where CNI plugins are, time-outs …).

    ``limits``: spec → why this runtime is known not to pass it; one that passes all the same is a failure. ``own_paths``:
    directories outside the server's own that belong to this runtime and must be as before. ``socket``: of a server that
    runs already; None: a private one is started. ``slowness`` multiplies every deadline of the suite. ``announced``: what the
    handler's plugin says of itself, its limits and paths among it.
    """

    name: str
    handler: Handler
    config: Config = field(default_factory=Config)
    limits: Mapping[str, str] = field(default_factory=dict)
    own_paths: Sequence[Path] = ()
    socket: Path | None = None
    slowness: float = 1.0
    announced: RuntimePlugin | None = None

    def __str__(self) -> str:
        return self.name


def target(
    name: str,
    *,
    config: Config | Sequence[Path] | None = None,
    plugin: str = "",
    options: Mapping[str, object] | None = None,
    **more: object,
) -> Target:
    """The handler ``name`` of ``config`` (files, or the whole; None: the machine's), or one of ``plugin`` with ``options``.

    ``more`` are Target's other fields. What the plugin itself announces as limits and paths is in force unless given here.
    Raises ConfigError.
    """
    loaded = config if isinstance(config, Config) else load(config)
    plugins = Plugins()
    plugins.load_entry_points()
    handler = Handler(plugin=plugin, options=dict(options or {})) if plugin else _configured(loaded, name, plugins)
    announced = plugins.runtime(handler.plugin)
    plugins.options(announced, handler.options)
    found = {"announced": announced, "own_paths": announced.own_paths, **more}
    return Target(name, handler, loaded, **found)  # type: ignore[arg-type]


def _configured(config: Config, name: str, plugins: Plugins) -> Handler:
    handlers = config.runtime.handlers
    if name in handlers:
        return handlers[name].model_copy(update={"enabled": True})
    if name in plugins.runtimes:  # installed, and its options have defaults: that is all that it takes
        return Handler(plugin=name)
    near = difflib.get_close_matches(name, [*handlers, *plugins.runtimes], n=1)
    hint = f"did you mean {near[0]!r}?" if near else "there are: " + ", ".join(sorted({*handlers, *plugins.runtimes}))
    raise ConfigError(f"no handler {name!r} is configured, and no plugin has that name; {hint}")


def read_limits(path: Path) -> Mapping[str, str]:
    """Known limits from a TOML file: ``spec = "reason"``, at the top or below ``[limits]``. Raises ConfigError."""
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{path}: {exc}") from exc
    limits = data.get("limits", data)
    if not isinstance(limits, dict):
        raise ConfigError(f"{path}: limits must be a table of spec = reason")
    for name, reason in limits.items():
        if not isinstance(reason, str) or not reason:
            raise ConfigError(f"{path}: {name}: must be the reason, in words")
    return dict(limits)
