"""What is known of an installed plugin besides its code, and the words for what is wrong with it. Pure."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import pydantic

from bridge.errors import ConfigError

API_VERSION = 1
"""Version of the hooks and of bridge.ports.runtime. It grows when something is added that a plugin may want to rely on."""
OLDEST_API = 1
"""The oldest version that still works here. It grows when a plugin written for an older one would no longer work."""


@dataclass(frozen=True, slots=True)
class Found:
    """One installed plugin: its entry point, the distribution that brought it, what it announced, and what is wrong with it.

    ``api`` is 0 and ``runtimes`` empty for one that announced none; ``hooks`` are the others that it implements.
    """

    name: str
    module: str
    distribution: str = ""
    version: str = ""
    wants: str = ""
    runtimes: tuple[str, ...] = ()
    api: int = 0
    hooks: tuple[str, ...] = ()
    fault: str = ""


def check_version(api: object) -> None:
    """Raises ConfigError for a plugin that was written for a version which this server does not serve."""
    if not isinstance(api, int) or isinstance(api, bool):
        raise ConfigError(f"RuntimePlugin.api must be the number of the interface's version that it was written for, not {api!r}")
    if OLDEST_API <= api <= API_VERSION:
        return
    here = f"{OLDEST_API} to {API_VERSION}" if OLDEST_API < API_VERSION else str(API_VERSION)
    age, mend = (
        ("newer", "upgrade cri-bridge, or install an older release of the plugin")
        if api > API_VERSION
        else ("older", "install a newer release of the plugin")
    )
    raise ConfigError(f"it was written for version {api} of the plugin interface, which is {age} than this server's {here}: {mend}")


def wanted(point: metadata.EntryPoint) -> str:
    """Which cri-bridge the plugin's distribution asks for; empty when it does not say."""
    requirements = (point.dist.requires or ()) if point.dist is not None else ()
    found = [text for text in requirements if re.match(r"cri-bridge(?![\w-])", text)]
    return found[0] if found else ""


def explain(error: Any, model: type[pydantic.BaseModel]) -> str:
    """One wrong option in words, with the nearest right name."""
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(where, model.model_fields, n=1)
        known = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(model.model_fields))}"
        return f"options.{where}: no such option; {known}"
    return f"options.{where}: {error['msg']}" if where else str(error["msg"])
