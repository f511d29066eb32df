"""The configuration schema: these pydantic models are the only place where an option is written down.

``config_files`` reads TOML into them; ``config_docs`` writes the sample file and docs/config.md from them, taking the
string below each field: what it does, then after ``Why:`` the reason for its default. A relative path in a field typed
``RunPath`` or ``StatePath`` is taken below ``server.run_dir`` or ``server.state_dir``, so that moving a root moves all
that it holds. Nothing here knows how a value is used: ``daemon.py`` hands each part its own small settings object.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import Field, SecretStr, model_validator

from bridge.config_images import Images, Registry
from bridge.config_runtime import DEFAULT_HANDLERS, Handler, Runtime, Security
from bridge.config_types import MIB, AbsolutePath, Below, Bytes, Count, HttpUrl, Mode, PortOrAny, RunPath, Seconds, Share, Table, Unit

__all__ = [
    "DEFAULT_HANDLERS",
    "Below",
    "Config",
    "Handler",
    "Images",
    "Metrics",
    "Monitor",
    "Network",
    "Registry",
    "Runtime",
    "Security",
    "Server",
    "Stats",
    "Streaming",
    "Table",
    "Tracing",
    "Unit",
]


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
    undo_timeout: Seconds = 40.0
    """How long it then waits for what is undone; what still hangs is left to the next start. Why: with the one above within 90 s."""
    concurrent_creates: Count = 16
    """Pods and containers made at once, and containers started at once; more wait, each pod in turn. Why: a returning node's load."""
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


class Network(Table):
    """Pod networking by CNI plugins."""

    conf_dir: AbsolutePath = Path("/etc/cni/net.d")
    """Directory of CNI configurations, watched; the first valid one by name is used. Why: network add-ons write there."""
    bin_dirs: list[AbsolutePath] = [Path("/opt/cni/bin"), Path("/usr/lib/cni")]
    """Directories of CNI plugins, searched in order. Why: add-ons and distributions install there."""
    conf_template: AbsolutePath | None = None
    """Template of which a CNI configuration is made when the kubelet tells the node's pod ranges and there is no other: as containerd's,
    with `{{.PodCIDR}}`, `.PodCIDRRanges` and `.Routes`. Why: unset, an add-on brings the configuration, as nearly everywhere."""
    plugin_timeout: Seconds = 60.0
    """Deadline of one CNI plugin for one verb. Why: cloud plugins wait for an address; the kubelet waits 2 min."""
    host_port_plugins: list[str] = ["cilium-cni"]
    """CNI plugins (by type) that serve host ports without the capability `portMappings`; on other networks a pod that asks for
    host ports is refused. Why: Cilium learns them from the API server; with any other they would silently answer nobody."""


class Streaming(Table):
    """The HTTP server of exec, attach and port-forward, to which the kubelet is given URLs with one-time tokens."""

    address: str = "127.0.0.1"
    """IP address to listen on. Why: the kubelet passes streams on and shares the node, so nobody else need reach it."""
    port: PortOrAny = 0
    """TCP port; 0 takes any that is free. Why: the kubelet is told it with every URL."""
    host: str = ""
    """Host in URLs; empty means the address, and the loopback one for 0.0.0.0 and ::. Why: only a certificate may need a name."""
    tls_certificate: AbsolutePath | None = None
    """PEM file with the certificate, and so TLS; read again when it changes. Why: unset, loopback needs none; elsewhere set it."""
    tls_key: AbsolutePath | None = None
    """Its key; unset, when it is in the same file. Why: as tools write them."""
    tls_client_authorities: AbsolutePath | None = None
    """PEM file with authorities, one of which must have signed a client's certificate. Why: unset, a kubelet shows none."""
    idle_timeout: Seconds = 4 * 3600.0
    """How long a session may be silent both ways before it is ended. Why: what kubelets and their other runtimes use."""
    max_sessions: Count = 1000
    """Sessions at once; more are refused with 503. Why: each holds some descriptors and up to a few MiB of what nobody reads."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        try:
            ipaddress.ip_address(self.address)
        except ValueError:
            raise ValueError(f"address: must be an IP address, not {self.address!r}") from None
        if self.tls_certificate is None and (self.tls_key or self.tls_client_authorities):
            raise ValueError("tls_key and tls_client_authorities: need tls_certificate")
        return self


MetricGroup = Literal["cpu", "disk", "diskIO", "hugetlb", "memory", "network", "oom", "pressure", "process", "spec"]


class Stats(Table):
    """Statistics and metrics of pods and containers."""

    period: Seconds = 10.0
    """How old a number may be that a list tells. While somebody asks, everything is read that often; a question about one container
    or one pod reads it at once. Why: a kubelet asks every 10 s, and its other runtimes' numbers are as old."""
    idle_timeout: Seconds = 60.0
    """How long reading goes on once nobody asks for lists. Why: a kubelet asks more often, and a node without one rests."""
    layer_period: Seconds = 60.0
    """Pause between two measurements of all writable layers, one after the other. Why: each looks at every file that was written."""
    concurrency: Count = 8
    """Backends asked at once for what only they can tell (gVisor, virtual machines). Why: each question may cost a process."""
    pod_metrics: list[MetricGroup] = Field(default_factory=lambda: list(get_args(MetricGroup)))
    """Groups of metrics that ListPodSandboxMetrics tells and ListMetricDescriptors describes; `container_last_seen` is always told. A
    kubelet asks once which there are: restart it after a change. Why: who takes metrics from here wants those that cAdvisor has; the
    dearest group is `process`, with a system call for each open file."""


class Metrics(Table):
    """The server's own metrics for Prometheus, at `/metrics`; they need the package prometheus-client (`cri-bridge[metrics]`)."""

    socket: AbsolutePath | None = None
    """Unix socket to serve them on. Why: unset, nothing is counted and nothing is imported."""
    socket_mode: Mode = 0o660
    """Permission bits of that socket. Why: as the server's own; metrics name no pods, so that more may be let in."""
    address: str = ""
    """IP address and port to serve them on, such as `127.0.0.1:9537` or `[::1]:9537`. Why: empty, nobody listens."""
    tls_certificate: AbsolutePath | None = None
    """PEM file with the certificate for the address, and so TLS; read again when it changes. Why: unset, loopback needs none."""
    tls_key: AbsolutePath | None = None
    """Its key; unset, when it is in the same file. Why: as tools write them."""
    tls_client_authorities: AbsolutePath | None = None
    """PEM file with authorities, one of which must have signed a client's certificate. Why: unset, whoever reaches it may read."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.address:
            host, _, port = self.address.rpartition(":")
            try:
                ip = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
                good = port.isdecimal() and 0 <= int(port) <= 65535 and (ip.version == 4) == (not host.startswith("["))
            except ValueError:
                good = False
            if not good:
                raise ValueError(f"address: must be an IP address with a port, such as 127.0.0.1:9537, not {self.address!r}")
        if self.tls_certificate is None and (self.tls_key or self.tls_client_authorities):
            raise ValueError("tls_key and tls_client_authorities: need tls_certificate")
        if self.tls_certificate is not None and not self.address:
            raise ValueError("tls_certificate: is for address, which is empty")
        return self


class Tracing(Table):
    """Traces of RPCs and their steps for OpenTelemetry, sent by OTLP over HTTP; they need the SDK (`cri-bridge[tracing]`).

    An option that is unset or empty leaves it to the environment variable of OpenTelemetry that is named with it.
    """

    enabled: bool = False
    """Whether they are made. Why: off, nothing is made and nothing is imported."""
    endpoint: HttpUrl = ""
    """URL that they are posted to, such as `http://127.0.0.1:4318/v1/traces`; without a path, `/v1/traces` is meant. Why: empty,
    `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, `OTEL_EXPORTER_OTLP_ENDPOINT` or the collector's usual port here."""
    sampling_ratio: Share | None = None
    """Share of the traces that begin here which is kept; one that a caller began is kept when the caller keeps it. Why: unset,
    `OTEL_TRACES_SAMPLER`, or all: a kubelet that traces chooses by its own rate, one that does not has no traces to choose from."""
    headers: dict[str, SecretStr] = {}
    """Headers of each request, such as `authorization`; their values are never shown. Why: with none, `OTEL_EXPORTER_OTLP_HEADERS`."""
    tls_authorities: AbsolutePath | None = None
    """PEM file with the authorities that an `https` endpoint is checked by. Why: unset, `OTEL_EXPORTER_OTLP_CERTIFICATE`, or those of
    the Python package certifi."""
    tls_certificate: AbsolutePath | None = None
    """PEM file with the certificate to show it. Why: unset, `OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE`, or none."""
    tls_key: AbsolutePath | None = None
    """Its key; unset, when it is in the same file. Why: as tools write them."""
    service_name: str = ""
    """What the traces are listed under. Why: empty, `OTEL_SERVICE_NAME`, or `cri-bridge`."""
    resource_attributes: dict[str, str] = {}
    """What else is said of this server, such as `k8s.node.name`. Why: added to `OTEL_RESOURCE_ATTRIBUTES`, and to its version and host."""
    queue: Count | None = None
    """Spans that may wait to be sent; more are dropped. Why: unset, `OTEL_BSP_MAX_QUEUE_SIZE`, or 2048: some megabytes."""
    period: Seconds | None = None
    """Between two batches that are not full. Why: unset, `OTEL_BSP_SCHEDULE_DELAY`, or 5 s."""
    timeout: Seconds | None = None
    """For sending one batch, tries included. Why: unset, `OTEL_EXPORTER_OTLP_TIMEOUT`, or 10 s."""
    flush_timeout: Seconds = 3.0
    """How long the end of the server waits for the last ones. Why: a collector that is away must not hold up a restart."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.tls_key and self.tls_certificate is None:
            raise ValueError("tls_key: needs tls_certificate")
        for name, value in self.headers.items():
            if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}", name):
                raise ValueError(f"headers: {name!r} is no name of a header")
            if not re.fullmatch(r"([\x21-\x7e]([\x20-\x7e]{0,8190}[\x21-\x7e])?)?", value.get_secret_value()):
                raise ValueError(f"headers: the value of {name} must be of printable ASCII characters without spaces around, at most 8192")
        return self


class Config(Table):
    """The whole configuration, valid and with every path absolute."""

    server: Server = Field(default_factory=Server)
    monitor: Monitor = Field(default_factory=Monitor)
    runtime: Runtime = Field(default_factory=Runtime)
    network: Network = Field(default_factory=Network)
    images: Images = Field(default_factory=Images)
    security: Security = Field(default_factory=Security)
    streaming: Streaming = Field(default_factory=Streaming)
    stats: Stats = Field(default_factory=Stats)
    metrics: Metrics = Field(default_factory=Metrics)
    tracing: Tracing = Field(default_factory=Tracing)

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
