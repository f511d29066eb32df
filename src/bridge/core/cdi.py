"""CDI devices by their qualified names: which spec gives each, and why one can't be had.

Source: CDI specification 1.1.0. Directories later in the list have precedence. Two specs of one directory that give the same
name make it unusable, unless a directory of higher precedence gives it too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bridge.core.cdi_spec import CdiSpec, Edits, is_qualified, parse
from bridge.core.model import ContainerConfig
from bridge.errors import ConfigError, InvalidRequest
from bridge.host.watched_files import FoundFile

ANNOTATION = "cdi.k8s.io/"
FIELD = "config.CDI_devices"


@dataclass(frozen=True, slots=True)
class CdiDevices:
    """What the spec directories give. ``conflicts`` maps a name to the files that quarrel over it, ``broken`` a file to its fault."""

    devices: Mapping[str, CdiSpec] = field(default_factory=dict)
    conflicts: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    broken: Mapping[Path, str] = field(default_factory=dict)

    @property
    def faults(self) -> Mapping[Path, str]:
        """What is wrong, by file."""
        quarrels = {paths[-1]: f"{name} is given by {paths[0]} too, so nobody gets it" for name, paths in self.conflicts.items()}
        return {**quarrels, **{path: f"is not used: {fault}" for path, fault in self.broken.items()}}

    def missing(self, wanted: Mapping[str, str]) -> bool:
        """Whether one of the names can't be resolved."""
        return any(name not in self.devices for name in wanted)

    def resolve(self, wanted: Mapping[str, str]) -> Edits:
        """All edits for these names (name → the CRI field that asks for it), in their order; a spec's own once, before its first device's.

        Raises InvalidRequest that lists every name that can't be resolved, with its field and the reason.
        """
        if self.missing(wanted):
            unresolved = [f"{name!r} ({self._reason(name)})" for name in wanted if name not in self.devices]
            asking = list(dict.fromkeys(wanted[name] for name in wanted if name not in self.devices))
            broken = "; ".join(f"{path} is not used: {fault}" for path, fault in self.broken.items())
            words = f"unresolvable CDI devices: {', '.join(unresolved)}" + (f"; {broken}" if broken else "")
            raise InvalidRequest(words, field=", ".join(asking))
        edits, seen = Edits(), set()
        for name in wanted:
            spec = self.devices[name]
            if spec.path not in seen:
                seen.add(spec.path)
                edits = edits.then(spec.edits)
            edits = edits.then(spec.devices[name.partition("=")[2]])
        return edits

    def _reason(self, name: str) -> str:
        if not is_qualified(name):
            return "it is not of the form vendor/class=device"
        if name in self.conflicts:
            return f"{' and '.join(map(str, self.conflicts[name]))} both give it"
        kind = name.partition("=")[0]
        known = sorted(other.partition("=")[2] for other in self.devices if other.partition("=")[0] == kind)
        return f"of kind {kind} there are: {', '.join(known)}" if known else f"no spec has kind {kind}"


def requested(config: ContainerConfig) -> dict[str, str]:
    """Name → CRI field of every CDI device that the config asks for: by field, then by annotation in the order of their keys; each once."""
    wanted: dict[str, str] = {}
    for index, name in enumerate(config.cdi_devices):
        wanted.setdefault(name, f"{FIELD}[{index}].name")
    for key in sorted(key for key in config.annotations if key.startswith(ANNOTATION)):
        for name in config.annotations[key].split(","):
            wanted.setdefault(name, f"config.annotations[{key}]")
    return wanted


def parse_all(files: Sequence[FoundFile]) -> CdiDevices:
    """The devices of all specs. Never raises: what can't be used is broken or a conflict. Blocks: for a worker thread."""
    specs: list[CdiSpec] = []
    broken: dict[Path, str] = {}
    for file in files:
        try:
            if file.fault:
                raise ConfigError(file.fault)
            specs.append(parse(file.path, file.rank, file.data))
        except ConfigError as exc:
            broken[file.path] = exc.message
    givers: dict[str, list[CdiSpec]] = {}
    for spec in specs:
        for device in spec.devices:
            givers.setdefault(f"{spec.kind}={device}", []).append(spec)
    devices: dict[str, CdiSpec] = {}
    conflicts: dict[str, tuple[Path, ...]] = {}
    for name, all_givers in givers.items():
        highest = max(spec.rank for spec in all_givers)
        best = [spec for spec in all_givers if spec.rank == highest]
        if len(best) == 1:
            devices[name] = best[0]
        else:
            conflicts[name] = tuple(spec.path for spec in best)
    return CdiDevices(devices, conflicts, broken)
