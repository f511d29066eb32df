"""The configuration schema: these pydantic models are the only place where an option is written down.

``config_files`` reads TOML into them; ``config_docs`` writes the sample file and docs/config.md from them, taking the
string below each field: what it does, then after ``Why:`` the reason for its default. A relative path in a field typed
``RunPath`` or ``StatePath`` is taken below ``server.run_dir`` or ``server.state_dir``, so that moving a root moves all
that it holds. Nothing here knows how a value is used: ``daemon.py`` hands each part its own small settings object.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Below:
    """Marks a path field whose relative values are taken below ``server.<root>``."""

    root: Literal["run_dir", "state_dir"]


@dataclass(frozen=True, slots=True)
class Unit:
    """Marks a number with its unit, for the documentation."""

    name: str


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError(f"must be an absolute path, not {str(path)!r}")
    return path


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
RunPath = Annotated[Path, Below("run_dir")]
StatePath = Annotated[Path, Below("state_dir")]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False), Unit("seconds")]
Bytes = Annotated[int, Field(ge=1), Unit("bytes")]
Count = Annotated[int, Field(ge=1)]
Mode = Annotated[int, Field(ge=0, le=0o777), Unit("mode")]


class Table(BaseModel):
    """A TOML table: frozen, and a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Server(Table):
    """The server process (`cri-bridge serve`): where it listens, where it keeps things, how it ends."""

    socket: RunPath = Path("cri-bridge.sock")
    """Unix socket of the CRI and admin services. Why: kubelet and crictl need this one path only."""
    socket_mode: Mode = 0o660
    """Permission bits of the socket. Why: whoever can connect is root on this node; one group may be let in."""
    socket_group: str = ""
    """Group that owns the socket; empty means root's. Why: nobody but root, unless an administrator says so."""
    state_dir: AbsolutePath = Path("/var/lib/cri-bridge")
    """What must survive a reboot: the database and the images. Why: the usual place for the state of a service."""
    run_dir: AbsolutePath = Path("/run/cri-bridge")
    """What must not survive a reboot: sockets, namespace pins, bundles. Why: a tmpfs, empty after boot as namespaces are gone."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe message that is logged to stderr. Why: info has a line for each change and none for a read."""
    shutdown_timeout: Seconds = 25.0
    """How long SIGTERM waits for running work before it is cancelled and undone. Why: leaves the undo time within systemd's 90 s."""
    concurrent_creates: Count = 16
    """Pods and containers made at once; more wait. Why: a returning node must not start hundreds of runtimes together."""
    max_message: Bytes = 16 * MIB
    """Largest gRPC message. Why: what kubelet and crictl accept."""


class Monitor(Table):
    """The monitor process (`cri-bridge monitor`), which holds the containers' stdio and exits and outlives the server."""

    socket: RunPath = Path("monitor.sock")
    """Unix socket between server and monitor, mode 0600. Why: only the server talks to it."""
    log_file: RunPath = Path("monitor.log")
    """Where the monitor's own messages go. Why: it outlives the server, so it can't borrow the server's stderr."""
    start_timeout: Seconds = 10.0
    """How long the server waits for a monitor that it started. Why: it takes 0.2 s; a loaded node may take longer."""


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
    """How long SIGKILL may take to end a container before the stop fails, to be tried again.
    Why: a process in uninterruptible sleep must not hold its pod for ever."""
    volume_timeout: Seconds = 10.0
    """How long a look at a volume's path on the host may take. Why: the path may lie on a dead network mount."""
    exec_output_limit: Bytes = 16 * MIB
    """Output kept of each stream of an ExecSync; the rest is dropped. Why: the kubelet takes no larger message."""
    exec_drain_timeout: Seconds = 1.0
    """How long ExecSync waits for output once its process ended. Why: a child that keeps the pipe open must not hold the probe."""

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


class Network(Table):
    """Pod networking by CNI plugins."""

    conf_dir: AbsolutePath = Path("/etc/cni/net.d")
    """Directory of CNI configurations, watched; the first valid one by name is used. Why: network add-ons write there."""
    bin_dirs: list[AbsolutePath] = [Path("/opt/cni/bin"), Path("/usr/lib/cni")]
    """Directories of CNI plugins, searched in order. Why: add-ons and distributions install there."""
    plugin_timeout: Seconds = 60.0
    """Deadline of one CNI plugin for one verb. Why: cloud plugins wait for an address; the kubelet waits 2 min."""


class Registry(Table):
    """How one registry host is reached; the key is its host[:port] as image names write it."""

    mirrors: list[str] = []
    """Base URLs or host[:port] tried first, in order. Why: none, ask the registry itself."""
    insecure: bool = False
    """Allow plain HTTP and any certificate. Why: images are code; only for registries on your own machine."""


class Images(Table):
    """The image store and pulls."""

    root: StatePath = Path("images")
    """Where blobs, layers and the containers' file systems are. Why: overlay wants them on one file system."""
    registries: dict[str, Registry] = {}
    """Settings by registry host. Why: public registries need none."""
    pinned: list[str] = []
    """Glob patterns of image names that are never garbage-collected. Why: the server itself needs no image."""
    parallel_downloads: Count = 4
    """Layers that are fetched and unpacked at once, over all pulls. Why: fills a link, and unpacking is bound by the disk."""
    stall_timeout: Seconds = 30.0
    """A download that brings no byte for so long is broken off and resumed. Why: a dead connection gives no error."""
    max_manifest: Bytes = 4 * MIB
    """Largest manifest, index or config accepted. Why: the limit that registries use."""
    max_layer: Bytes = 64 * GIB
    """Largest unpacked layer accepted. Why: above the largest model images, below what fills a disk by accident."""
    max_layer_files: Count = 4_000_000
    """Most entries in one layer. Why: a bomb of empty files eats inodes, not bytes."""


class Security(Table):
    """What a container gets when its pod asks for nothing."""

    seccomp_profile: AbsolutePath | None = None
    """JSON file that is the RuntimeDefault seccomp profile. Why: unset is the built-in one."""
    seccomp_when_unset: Literal["RuntimeDefault", "Unconfined"] = "RuntimeDefault"
    """Profile of a container whose request names none. Why: a kubelet always names one; nothing else may run unprotected by omission.
    critest has one spec that expects Unconfined."""
    seccomp_native_only: bool = False
    """Leave 32-bit system calls out of the built-in profile.
    Why: it makes each start and exec some 4 ms faster, but kills 32-bit programs."""
    capabilities: list[str] = [
        *("CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "SETGID", "SETUID"),
        *("SETFCAP", "SETPCAP", "NET_BIND_SERVICE", "SYS_CHROOT", "KILL", "AUDIT_WRITE"),
    ]
    """Linux capabilities of a container; its pod adds to or drops from these.
    Why: what images of the field rely on, without NET_RAW (pods may ping all the same) and MKNOD."""

    @field_validator("capabilities")
    @classmethod
    def _plain_names(cls, names: list[str]) -> list[str]:
        return [name.upper().removeprefix("CAP_") for name in names]


class Config(Table):
    """The whole configuration, valid and with every path absolute."""

    server: Server = Field(default_factory=Server)
    monitor: Monitor = Field(default_factory=Monitor)
    runtime: Runtime = Field(default_factory=Runtime)
    network: Network = Field(default_factory=Network)
    images: Images = Field(default_factory=Images)
    security: Security = Field(default_factory=Security)

    @model_validator(mode="after")
    def _place_paths(self) -> Self:
        """Make every RunPath and StatePath absolute."""
        for name in type(self).model_fields:
            section: Table = getattr(self, name)
            placed = {
                field: getattr(self.server, mark.root) / getattr(section, field)
                for field, info in type(section).model_fields.items()
                for mark in info.metadata
                if isinstance(mark, Below)
            }
            object.__setattr__(self, name, section.model_copy(update=placed))  # frozen for all but its own construction
        return self
