"""The handlers that the suite is run on, as a node's configuration has them: for the tests, and for scripts/conformance.

``python -m tests.conformance.handlers FILE`` writes that configuration and prints the names of those that can be had here.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridge.config_docs import toml_value


@dataclass(frozen=True)
class Tried:
    """``binary``: without it the handler can't be had here; ``package``: where Debian has it."""

    plugin: str
    binary: str
    package: str
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def available(self) -> bool:
        return shutil.which(self.binary) is not None

    def toml(self, name: str) -> str:
        """Its section of a configuration."""
        lines = [f"[runtime.handlers.{name}]", f"plugin = {toml_value(self.plugin)}", f"options = {toml_value(dict(self.options))}"]
        return "\n".join([*lines, *(f"{key} = {toml_value(value)}" for key, value in self.settings.items())]) + "\n"


HANDLERS: Mapping[str, Tried] = {
    "runc": Tried("runc", "runc", "runc", {"path": "runc"}),
    "crun": Tried("runc", "crun", "crun", {"path": "crun"}),
    "gvisor": Tried("gvisor", "runsc", "runsc", {"network": "host"}),
    "shim": Tried("shim", "containerd-shim-runc-v2", "containerd"),
}


def main(path: Path) -> None:
    path.write_text("\n".join(tried.toml(name) for name, tried in HANDLERS.items()))
    print(*(name for name, tried in HANDLERS.items() if tried.available))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
