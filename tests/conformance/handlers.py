"""The handlers that the suite is run on, as a node's configuration has them: for the tests, and for scripts/conformance.

``python -m tests.conformance.handlers FILE [CONFIG...]`` writes that configuration, and prints the names of those that can be had here
and of those that the other configurations name.
"""

from __future__ import annotations

import shutil
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridge.config_docs import toml_value
from bridge.testing.fake_kata.binary import install


@dataclass(frozen=True)
class Tried:
    """``binary``: without it the handler can't be had here; ``package``: where Debian has it."""

    plugin: str
    binary: str
    package: str
    options: Mapping[str, Any] = field(default_factory=dict)
    install: Callable[[Path], Path] | None = None
    """Puts the binary that ``options.path`` is to name into a directory."""

    def made(self, directory: Path) -> Mapping[str, Any]:
        """The plugin's options."""
        return self.options if self.install is None else {**self.options, "path": str(self.install(directory))}

    @property
    def available(self) -> bool:
        return shutil.which(self.binary) is not None

    def toml(self, name: str, directory: Path) -> str:
        """Its section of a configuration."""
        options = toml_value(dict(self.made(directory)))
        return f"[runtime.handlers.{name}]\nplugin = {toml_value(self.plugin)}\noptions = {options}\n"


HANDLERS: Mapping[str, Tried] = {
    "runc": Tried("runc", "runc", "runc", {"path": "runc"}),
    "crun": Tried("runc", "crun", "crun", {"path": "crun"}),
    "gvisor": Tried("gvisor", "runsc", "runsc", {"network": "host"}),
    "shim": Tried("shim", "containerd-shim-runc-v2", "containerd"),
    # A stand-in that does as Kata's shim does, with runc in the place of a machine: CI has no KVM.
    "kata-stand-in": Tried("kata", "runc", "runc", {"required_devices": []}, install),
}


def further(path: Path) -> list[str]:
    """The handlers that a configuration names."""
    return [name for name in tomllib.loads(path.read_text()).get("runtime", {}).get("handlers", {}) if name not in HANDLERS]


def main(path: Path, *others: Path) -> None:
    path.write_text("\n".join(tried.toml(name, path.parent) for name, tried in HANDLERS.items()))
    print(*(name for name, tried in HANDLERS.items() if tried.available), *(name for other in others for name in further(other)))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
