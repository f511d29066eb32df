"""What `[runtime.handlers.NAME.options]` may hold for a handler with `plugin = "kata"`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from bridge_kata.steering import PREFIX, SAFE

Seconds = Annotated[float, Field(gt=0, le=3600)]
Settings = dict[Annotated[str, Field(pattern=r"^[a-z0-9_.]+$")], bool | int | float | str]


class KataOptions(BaseModel):
    """Every option has a default; the usual handler sets ``config_path`` alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    flavour: Literal["shim", "cli"] = "shim"
    """How Kata is driven: `shim` by containerd's shim API, `cli` by the command kata-runtime. Why: 2.x and later have no such command."""
    path: str = ""
    """The binary: an absolute path, or a name looked up in PATH. Why: unset, containerd-shim-kata-v2 or kata-runtime, as packaged."""
    generation: Literal["auto", "go", "rust"] = "auto"
    """Which of Kata's two shims `path` must be, told by its version. Why: `auto`, as both are served alike; set it to be sure."""
    config_path: Path | None = None
    """Kata's configuration.toml, which chooses hypervisor and guest. Why: unset, Kata searches the places it was built with."""
    env: dict[str, str] = {}
    """Variables added to the environment of Kata's processes. Why: none are needed."""
    debug: bool = False
    """Have the shim log verbosely, into the server's log. Why: a busy shim writes much."""
    required_devices: tuple[Path, ...] = (Path("/dev/kvm"),)
    """Devices that must open for reading and writing, else the handler is disabled with the reason. Why: without KVM no pod would boot."""
    hypervisor: Settings = {}
    """Settings of Kata's section `[hypervisor.…]` for this handler's pods, as annotations. Why: one file may serve several handlers."""
    agent: Settings = {}
    """The same of its section `[agent.kata]`. Why: the file's are right."""
    runtime: Settings = {}
    """The same of its section `[runtime]`. Why: the file's are right."""
    allowed_annotations: tuple[str, ...] = SAFE
    """Annotations `io.katacontainers.…` that every pod may set; prefixes, or globs. Why: only those that change nothing but the guest."""
    refuse_other_annotations: bool = False
    """Refuse a pod that sets others of that family instead of leaving them out with a warning. Why: as other CRI servers do it."""
    static_sizing: bool = True
    """Tell Kata the sums of the containers' limits before it boots the machine. Why: Kata uses them or not, as its configuration says."""
    guest_seccomp: bool = True
    """Pass seccomp profiles to the guest. Why: Kata's configuration (`disable_guest_seccomp`) decides what becomes of them there."""
    boot_timeout: Seconds = 120.0
    """Seconds that the machine may take until its sandbox container is made. Why: 1 s with KVM, 40 s where several boot by emulation."""
    start_timeout: Seconds = 60.0
    """Seconds that making or starting one container may take. Why: each is a conversation with the guest."""
    exec_timeout: Seconds = 60.0
    """Seconds that the start of a command may take; not its running time. Why: a guest without KVM takes 4 s."""
    kill_timeout: Seconds = 20.0
    """Seconds that the delivery of a signal may take. Why: a guest under load answers late, one that hangs never."""
    delete_timeout: Seconds = 60.0
    """Seconds that taking down the machine may take before its processes are killed. Why: a guest shuts down in seconds."""

    @field_validator("allowed_annotations")
    @classmethod
    def _of_the_family(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            if not pattern.startswith(PREFIX):
                raise ValueError(f"{pattern!r} does not begin with {PREFIX!r}: others belong into the handler's own allowed_annotations")
        return patterns
