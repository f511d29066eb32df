"""What the image store is told by the configuration. Frozen; every size is in bytes, every time in seconds."""

from __future__ import annotations

import os
import platform as host_platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bridge.images.manifest import Platform

_ARCHITECTURES = {
    "x86_64": Platform("linux", "amd64"),
    "i686": Platform("linux", "386"),
    "aarch64": Platform("linux", "arm64", "v8"),
    "armv7l": Platform("linux", "arm", "v7"),
    "armv6l": Platform("linux", "arm", "v6"),
    "ppc64le": Platform("linux", "ppc64le"),
    "s390x": Platform("linux", "s390x"),
    "riscv64": Platform("linux", "riscv64"),
    "loongarch64": Platform("linux", "loong64"),
}


def host() -> Platform:
    """The platform of this machine in the words of the OCI image spec."""
    machine = host_platform.machine()
    return _ARCHITECTURES.get(machine, Platform("linux", machine))


@dataclass(frozen=True, slots=True)
class Registry:
    """How one registry host (as in references: ``docker.io``, ``127.0.0.1:5000``) is reached.

    ``mirrors`` are base URLs (``http://127.0.0.1:5000``) tried in order before the registry itself; plain http in a URL is
    taken at its word. ``insecure``: the registry's and its mirrors' certificates are not checked, and plain http is tried when TLS fails.
    ``authorities`` are PEM files trusted besides the system's, ``client`` a PEM certificate with its key. ``blocked``: nothing is pulled.
    """

    mirrors: Sequence[str] = ()
    insecure: bool = False
    authorities: Sequence[Path] = ()
    client: tuple[Path, Path] | None = None
    blocked: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """What an image may ask of us. Hostile content is refused by these, honest content stays far below."""

    manifest_bytes: int = 4 << 20
    """A manifest, index or config; 4 MiB is what registries accept."""
    index_depth: int = 4
    """An index may name an index, but not for ever."""
    layers: int = 127
    """The most that Docker ever built."""
    layer_bytes: int = 64 << 30
    """One layer unpacked."""
    layer_entries: int = 4_000_000
    ratio: int = 1000
    """Unpacked over compressed, counted from 64 MiB on; deflate can't pass 1032, honest layers stay below 100."""


@dataclass(frozen=True, slots=True)
class ImageSettings:
    """Everything the store needs. ``root`` is private to it and lies on one file system.

    ``parallel`` bounds the layers that are fetched and unpacked at once, over all pulls. A transfer fails when nothing arrives for
    ``idle_seconds`` or when fewer than ``floor_bytes`` a second arrive over ``floor_seconds``. ``linger`` is how long a pull goes
    on after its last caller left. ``measure_seconds`` is the pause between two measurements of writable layers.
    For registries not in ``registries``, containerd's ``hosts_dirs`` are looked at, then ``registries_conf`` (see routing).
    ``certificate_dirs`` hold a directory a host, ``auth_files`` stored credentials; a credential helper gets ``helper_seconds``.
    An answer that asks to come back later (429, 503) is obeyed up to ``patience`` seconds a request.
    ``signature_policy`` (None: accept everything; not ``required``: also when it is absent) says what is signed how, NAMESPACE.json in
    ``signature_policy_dir`` for that namespace's pods, and ``registries_d`` where signatures lie.
    """

    root: Path
    registries: Mapping[str, Registry] = field(default_factory=dict)
    hosts_dirs: Sequence[Path] = ()
    registries_conf: Path | None = None
    certificate_dirs: Sequence[Path] = ()
    auth_files: Sequence[Path] = ()
    helper_seconds: float = 10.0
    patience: float = 30.0
    signature_policy: Path | None = None
    signature_policy_required: bool = True
    signature_policy_dir: Path | None = None
    registries_d: Path | None = None
    limits: Limits = field(default_factory=Limits)
    platform: Platform = field(default_factory=host)
    pinned: Sequence[str] = ()
    """Globs of references or names (``registry.k8s.io/pause:*``) whose images are reported as pinned."""
    parallel: int = max(3, min(8, os.cpu_count() or 3))
    connect_seconds: float = 10.0
    idle_seconds: float = 30.0
    floor_bytes: int = 1024
    floor_seconds: float = 60.0
    linger: float = 600.0
    measure_seconds: float = 60.0
    verify_days: float = 0.0
    """Every layer is read and compared once in so many days; 0: never."""
    verify_rate: int = 32 << 20
    """How fast, in bytes a second."""
