"""``cri-bridge config default|check|show``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from bridge import config_docs
from bridge.aio import describe
from bridge.cli.output import as_json
from bridge.config_files import Loaded, dotted, read
from bridge.errors import ConfigError
from bridge.plugins import Plugins


def default(arguments: argparse.Namespace) -> int:
    """Print every key with its default and its meaning."""
    sys.stdout.write(config_docs.markdown() if arguments.markdown else config_docs.default_toml())
    return 0


def check(arguments: argparse.Namespace) -> int:
    """Read the files; faults are raised as ConfigError, all of them at once: first the server's own, then those of handlers."""
    loaded = read(arguments.config)
    faults = list(handler_faults(loaded))
    if faults:
        raise ConfigError("\n".join(faults))
    print("valid: " + (", ".join(map(str, loaded.files)) or "no file was found, the defaults are in force"))
    return 0


def handler_faults(loaded: Loaded) -> Iterator[str]:
    """What is wrong with the handlers that files configure and enable: a plugin that is not here, options that its model refuses.

    No plugin opens anything. The handlers of the defaults are left out, as one whose plugin is not installed does no harm.
    """
    plugins = Plugins()
    plugins.load_entry_points()
    for name, handler in loaded.config.runtime.handlers.items():
        key = ("runtime", "handlers", name)
        if not handler.enabled or key not in loaded.origins:
            continue
        part = "plugin"
        try:
            plugin = plugins.runtime(handler.plugin)
            part = "options"
            plugins.options(plugin, handler.options)
        except Exception as exc:  # noqa: BLE001 - the model is a plugin's code
            why = str(exc) if isinstance(exc, ConfigError) else f"plugin {handler.plugin!r} failed: {describe(exc)}"
            origin = loaded.origins.get((*key, part), loaded.origins[key])
            yield f"{origin}: {dotted(key)}: {'plugin: ' if part == 'plugin' else ''}{why}"


def show(arguments: argparse.Namespace) -> int:
    """Print what is in force."""
    loaded = read(arguments.config)
    if arguments.output == "json":
        as_json(loaded.config.model_dump(mode="json"))
    else:
        sys.stdout.write(config_docs.show(loaded))
    return 0
