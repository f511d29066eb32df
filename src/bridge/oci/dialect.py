"""How the command line of one runtime differs from runc's: flags, verbs, what it keeps where, what it can't do. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from bridge.ports.runtime import Ability, Feature, Support


class Launch(StrEnum):
    """Which verbs start a container: ``run`` alone, or ``create`` and ``start``, all that the OCI runtime spec demands."""

    RUN = "run"
    CREATE = "create"


class ExecCgroup(StrEnum):
    """How ``exec --cgroup`` of the runtime works on v1 (on v2 there is one hierarchy, and PATH and CONTROLLER are the same).

    CONTROLLER: ``freezer:name``, the others stay the container's (runc). PATH: ``name``, in every hierarchy where it exists; in
    the others the process would escape from the container's cgroup (crun). NONE: there is no such flag.
    """

    CONTROLLER = "controller"
    PATH = "path"
    NONE = "none"


class Scope(StrEnum):
    """Whose spec gets ``Dialect.annotations``."""

    CONTAINERS = "containers"
    PAUSE = "pause"
    TRIAL = "trial"


@dataclass(frozen=True, slots=True)
class Flags:
    """Spelling of the flags that take a value, and of those that take none. One that ends with ``=`` is joined to its value.

    An empty one does not exist; ``bundle``, ``pid_file`` and ``process`` can't be done without.
    """

    bundle: str = "--bundle"
    pid_file: str = "--pid-file"
    process: str = "--process"
    console: str = "--console-socket"
    detach: str = "--detach"
    force: str = "--force"
    resources: str = "--resources"
    cgroup: str = "--cgroup"
    images: str = "--image-path"
    work: str = "--work-path"
    running: str = "--leave-running"


@dataclass(frozen=True, slots=True)
class Dialect:
    """The defaults are runc's. In ``root``, ``log`` and ``state_dir`` the words {root}, {log} and {id} are filled in.

    ``root``, ``systemd`` and ``log`` are global arguments, empty for none. ``verbs`` maps runc's verbs to their names here, and
    ``verb_args`` (by runc's names) are further arguments behind them. ``version`` is empty for a runtime that doesn't tell its own.
    ``state_dir`` exists as long as the runtime knows the container; "" when only its ``state`` verb can tell. ``exec_cgroup`` None:
    found out from the help. ``start_codes`` maps the exit code of a failed start to what is reported (127 command not found, 126 not
    executable). ``abilities`` overrule what the runtime says of itself; False stands, True has to pass the trial where there is one.
    """

    launch: Launch = Launch.RUN
    flags: Flags = Flags()
    root: tuple[str, ...] = ("--root", "{root}")
    systemd: tuple[str, ...] = ("--systemd-cgroup",)
    log: tuple[str, ...] = ("--log", "{log}", "--log-format", "json")
    verbs: Mapping[str, str] = field(default_factory=dict)
    verb_args: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    version: tuple[str, ...] = ("--version",)
    features: bool = True
    state_dir: str = "{root}/{id}"
    exec_cgroup: ExecCgroup | None = None
    start_codes: Mapping[int, int] = field(default_factory=dict)
    trial: bool = True
    abilities: Mapping[Ability, bool] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    annotated: frozenset[Scope] = frozenset({Scope.CONTAINERS})

    def verb(self, name: str) -> list[str]:
        """runc's verb ``name`` as it is called here, with its further arguments."""
        return [self.verbs.get(name, name), *self.verb_args.get(name, ())]

    def state_path(self, root: Path, container_id: str) -> Path | None:
        """Where a container's state is; None when that says nothing."""
        return Path(self.state_dir.format(root=root, id=container_id)) if self.state_dir else None

    def noted(self, oci: Mapping[str, Any], scope: Scope) -> Mapping[str, Any]:
        """``oci`` with this runtime's annotations. One that came with the pod gives way."""
        if not self.annotations or scope not in self.annotated:
            return oci
        return {**oci, "annotations": {**(oci.get("annotations") or {}), **self.annotations}}

    def overruled(self, found: Mapping[Ability, Feature]) -> dict[Ability, Feature]:
        """``found`` without what this command line can't do."""
        missing = {ability: "its handler's options say that it can't" for ability, able in self.abilities.items() if not able}
        for ability, flag in ((Ability.TTY, self.flags.console), (Ability.UPDATE, self.flags.resources)):
            if not flag:
                missing.setdefault(ability, "its command line has no flag for it")
        return {**found, **{ability: Feature(Support.UNSUPPORTED, why) for ability, why in missing.items()}}


def flag(name: str, value: object) -> list[str]:
    """The flag ``name`` with its value as arguments; none for a flag that does not exist."""
    if not name:
        return []
    return [f"{name}{value}"] if name.endswith("=") else [name, str(value)]


def switch(name: str) -> list[str]:
    """The flag ``name`` without value as arguments."""
    return [name] if name else []
