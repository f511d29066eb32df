"""The configuration's runtime handlers, and what a container gets when its pod asks for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from bridge.config_types import MIB, AbsolutePath, Bytes, DevicePath, PidsLimit, Seconds, Table


class Handler(Table):
    """One runtime handler: the name that a RuntimeClass gives in `handler:`."""

    plugin: str = Field(examples=["runc"])
    """Name of the plugin that runs it (`cri-bridge handlers` lists them). Why: required, there is no default."""
    enabled: bool = True
    """Whether pods may use it. Why: false takes away a handler that the defaults or another file define."""
    options: dict[str, Any] = Field(default={}, examples=[{"path": "crun"}])
    """The plugin's own options, which the plugin's README documents. Why: most plugins need none."""
    create_timeout: Seconds | None = None
    """Overrides `runtime.create_timeout` for this handler. Why: unset, as only virtual machines need longer."""
    start_timeout: Seconds | None = None
    """Overrides `runtime.start_timeout` for this handler. Why: unset, as only virtual machines need longer."""
    allowed_annotations: list[Annotated[str, Field(min_length=1)]] = []
    """Annotations of pods and containers that this handler's runtime is told: prefixes, or globs where one has `*`, `?` or `[`.
    Those that steer a runtime (`org.systemd.property.`, `run.oci.`, `io.katacontainers.` …) only by a pattern that names their
    family. Why: an annotation can change what a runtime does as root (CVE-2024-3154)."""
    base_spec: AbsolutePath | None = None
    """JSON file of an OCI spec that each container's own is laid over: rlimits, hooks, mounts, environment; read at start and at SIGHUP.
    Why: unset, as the request says what a container needs."""


DEFAULT_HANDLERS: Mapping[str, Mapping[str, Any]] = {
    "runc": {"plugin": "runc", "options": {"path": "runc"}},
    "crun": {"plugin": "runc", "options": {"path": "crun"}},
}


class Runtime(Table):
    """Which backends run pods, and how long they may take. A handler whose binary is missing is disabled, with its reason."""

    default_handler: str = "runc"
    """Handler of pods whose RuntimeClass names none. Why: the reference runtime, packaged everywhere."""
    handlers: dict[str, Handler] = Field(
        default_factory=lambda: {name: Handler.model_validate(dict(value)) for name, value in DEFAULT_HANDLERS.items()}
    )
    """The handlers by name; a file adds to these or changes them. Why: the runc plugin serves both; one not installed does no harm."""
    cgroup_driver: Literal["auto", "systemd", "cgroupfs"] = "auto"
    """Who makes cgroups; the kubelet asks and follows. Why: auto is systemd where it runs the host on cgroup v2, else cgroupfs."""
    pause_binaries: list[AbsolutePath] = [Path("/usr/bin/catatonit"), Path("/usr/libexec/podman/catatonit"), Path("/bin/busybox")]
    """Static binaries for the pause process of a pod with a shared PID namespace; the first that exists is used.
    Why: a local file can't be garbage-collected as a pulled pause image can."""
    create_timeout: Seconds = 60.0
    """Deadline of a backend for making a sandbox. Why: above any healthy time, below the kubelet's 2 min."""
    start_timeout: Seconds = 60.0
    """Deadline of the runtime for starting a container. Why: above any healthy time, below the kubelet's 2 min."""
    kill_timeout: Seconds = 30.0
    """How long SIGKILL may take to end a container, and the runtime to delete it, before the call fails, to be tried again.
    Why: a process in uninterruptible sleep must not hold its pod for ever."""
    volume_timeout: Seconds = 10.0
    """How long a look at a volume's path on the host may take. Why: the path may lie on a dead network mount."""
    missing_mount_sources: Literal["create", "refuse"] = "create"
    """What becomes of a mount whose host path is missing: it is made, a directory of mode 0755, or the container is refused.
    Why: containerd and CRI-O make it, and pods rely on that."""
    refused_missing_mount_sources: list[AbsolutePath] = [Path("/etc/hostname")]
    """Host paths that are never made when they are missing; the container is refused. Why: a directory there would break the node."""
    shm_size: Bytes = 64 * MIB
    """Size of a pod's /dev/shm, which counts as its memory. Why: what every other runtime gives; a pod that needs more mounts an
    emptyDir of medium Memory there."""
    pids_limit: PidsLimit = -1
    """Processes and threads of a container, -1 for no limit. Why: none, as the kubelet limits each pod by its own podPidsLimit."""
    blockio_config_file: AbsolutePath | None = None
    """TOML, YAML or JSON file with the classes that the annotations `blockio.resources.beta.kubernetes.io/…` name; read at start.
    Why: unset, as weights and throttles belong to the disks of one host."""
    missing_resource_classes: Literal["refuse", "ignore"] = "refuse"
    """What becomes of a container whose pod names a class of block I/O or RDT that this host lacks.
    Why: without the class it would run with more or less than it was promised."""
    exec_output_limit: Bytes = 16 * MIB
    """Output kept of each stream of an ExecSync; the rest is dropped. Why: the kubelet takes no larger message."""
    exec_drain_timeout: Seconds = 1.0
    """How long ExecSync waits for output once its process ended. Why: a child that keeps the pipe open must not hold the probe."""

    cdi_spec_dirs: list[AbsolutePath] = [Path("/etc/cdi"), Path("/var/run/cdi")]
    """Directories of CDI specs, watched; later ones have precedence. Why: where device vendors write, the second until a reboot."""
    hooks_dirs: list[AbsolutePath] = [Path("/usr/share/containers/oci/hooks.d"), Path("/etc/containers/oci/hooks.d")]
    """Directories of OCI hooks, watched; a file of a later one replaces that of the same name. Why: packages, then the administrator."""
    additional_devices: list[DevicePath] = []
    """Devices that every container gets: HOST[:CONTAINER][:PERMISSIONS].
    Why: none, as device plugins and CDI give each device to those it is meant for."""
    device_ownership_from_security_context: bool = False
    """Whether devices that a container asks for belong to its user and group instead of the host's owner.
    Why: off as in other runtimes; needed where users other than root use devices of device plugins."""

    @field_validator("handlers", mode="before")
    @classmethod
    def _keep_defaults(cls, given: object) -> object:
        """Lay the given handlers over the default ones, so that a file may change one option of one handler."""
        if not isinstance(given, dict):
            return given
        merged: dict[str, Any] = {name: dict(value) for name, value in DEFAULT_HANDLERS.items()}
        for name, table in given.items():
            merged[name] = {**merged.get(name, {}), **table} if isinstance(table, dict) else table
        return merged

    @model_validator(mode="after")
    def _default_exists(self) -> Self:
        handler = self.handlers.get(self.default_handler)
        if handler is None or not handler.enabled:
            known = ", ".join(sorted(name for name, value in self.handlers.items() if value.enabled)) or "none"
            raise ValueError(f"default_handler: no enabled handler is named {self.default_handler!r}; there are: {known}")
        return self


Categories = Annotated[int, Field(ge=2, le=1024)]


class Security(Table):
    """What a container gets when its pod asks for nothing."""

    seccomp_profile: AbsolutePath | None = None
    """JSON file that is the RuntimeDefault seccomp profile. Why: unset is the built-in one."""
    seccomp_when_unset: Literal["RuntimeDefault", "Unconfined"] = "Unconfined"
    """Profile of a container whose request names none.
    Why: the CRI says that unset is unconfined, and a kubelet with `seccompDefault` always names one. RuntimeDefault is stricter."""
    seccomp_profile_root: AbsolutePath = Path("/var/lib/kubelet/seccomp")
    """Directory of the seccomp profiles that pods may name; a link may not lead out of it.
    Why: the kubelet's own. One with another --root-dir sends paths below that."""
    seccomp_native_only: bool = False
    """Leave 32-bit system calls out of the built-in profile.
    Why: it makes each start and exec some 4 ms faster, but kills 32-bit programs."""
    apparmor_profile: str = "cri-bridge-default"
    """AppArmor profile of containers that ask for the default or for none; "unconfined" for none, "" to leave it to the runtime.
    Why: this one is built in and loaded when it is first needed; any other has to be loaded already."""
    capabilities: list[str] = [
        *("CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "SETGID", "SETUID"),
        *("SETFCAP", "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE"),
    ]
    """Linux capabilities of a container; its pod adds to or drops from these.
    Why: what images of the field rely on, without NET_RAW (pods may ping all the same) and MKNOD."""

    restore_checkpoint_images: bool = False
    """Whether a container is restored whose image is a checkpoint (`io.kubernetes.cri-o.checkpoint`), as pods can ask for.
    Why: off, as the processes in it have the rights that it says, not those that their pod may have."""

    selinux: Literal["auto", "on", "off"] = "auto"
    """Whether pods get SELinux labels. Why: auto gives them wherever SELinux is enabled with a policy for containers;
    on refuses to start without."""
    selinux_categories: Categories = 1024
    """Categories that the pair of each pod is drawn from. Why: as many as the usual policies have; enough for 523 776 pods."""
    selinux_relabel_timeout: Seconds = 600.0
    """How long the labelling of one volume may take. Why: millions of files take minutes; a kubelet's retry joins the running work."""

    @field_validator("capabilities")
    @classmethod
    def _plain_names(cls, names: list[str]) -> list[str]:
        return [name.upper().removeprefix("CAP_") for name in names]
