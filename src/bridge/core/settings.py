"""What core needs to know of the configuration, as small frozen objects (the daemon fills them in)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from bridge.core.metric_groups import CHOICES, Group
from bridge.core.model import DeviceRequest
from bridge.core.pace import SamplerSettings
from bridge.host.selinux import Contexts


@dataclass(frozen=True, slots=True)
class CoreSettings:
    """Paths, limits and deadlines of core. Seconds and bytes.

    ``run_dir`` holds one directory a sandbox and vanishes at reboot.
    ``pause_rootfs`` and ``pause_argv`` are the sandbox container's root and command (None: no static binary was found, and
    what needs a sandbox container is refused). ``volume_timeout`` bounds each look at a volume's host path;
    a missing one is made a directory if ``create_missing_volumes``, unless it is one of ``never_created_volumes``.
    ``exec_answer_limit`` bounds both output streams of an ExecSync together: what one message can carry.
    ``concurrent_creates`` bounds the pods and containers that are being made at once, and the containers that are being started.
    ``selinux`` is None where no labels are given; ``selinux_categories`` is the number of categories that pods' pairs are drawn
    from, ``relabel_timeout`` bounds the labelling of one volume.
    ``additional_devices`` are every container's; with ``device_ownership`` devices that it asks for belong to its user.
    ``restore_images`` lets images that are checkpoints be restored.
    ``sampler`` is the rhythm of statistics, ``metric_groups`` what of metrics is told.
    """

    run_dir: Path
    pause_rootfs: Path | None
    pause_argv: tuple[str, ...]
    boot_id: str
    default_cgroup_parent: str = ""
    shm_bytes: int = 64 << 20
    exec_output_limit: int = 16 << 20
    exec_answer_limit: int = (16 << 20) - 4096
    exec_drain: float = 1.0
    kill_timeout: float = 30.0
    undo_timeout: float = 60.0
    volume_timeout: float = 10.0
    create_missing_volumes: bool = True
    never_created_volumes: tuple[str, ...] = ()
    concurrent_creates: int = 16
    selinux: Contexts | None = None
    selinux_categories: int = 1024
    relabel_timeout: float = 600.0
    additional_devices: tuple[DeviceRequest, ...] = ()
    device_ownership: bool = False
    restore_images: bool = False
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    metric_groups: tuple[Group, ...] = CHOICES

    def sandbox_dir(self, sandbox_id: str) -> Path:
        """State of one sandbox: hostname, hosts, resolv.conf, shm, namespace pins."""
        return self.run_dir / "sandboxes" / sandbox_id

    def bundle(self, sandbox_id: str, container_id: str) -> Path:
        """OCI bundle of one container, its rootfs mount included."""
        return self.sandbox_dir(sandbox_id) / "containers" / container_id
