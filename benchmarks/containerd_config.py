"""The configuration of a private containerd: as the peer of a benchmark, and of tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_CRI = "io.containerd.grpc.v1.cri"
_BASE = """version = 2
root = "{root}/root"
state = "{run}/state"
disabled_plugins = [{disabled}"io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "{socket}"
[ttrpc]
  address = "{run}/ttrpc.sock"
"""
_PODS = """[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni_bin}"
    conf_dir = "{cni_conf}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "{runtime}"
        Root = "{run}/runc"
        SystemdCgroup = false
"""


@dataclass(frozen=True)
class Pods:
    """What its CRI plugin needs to know: the pause image, where CNI's plugins and configuration are, and the OCI runtime."""

    pause: str
    cni_bin: Path
    cni_conf: Path
    runtime: str | Path = "runc"


def containerd_toml(*, root: Path, run: Path, socket: Path, pods: Pods | None) -> str:
    """Its state is below ``root`` and ``run``; without ``pods`` its CRI plugin is off."""
    text = _BASE.format(root=root, run=run, socket=socket, disabled="" if pods is not None else f'"{_CRI}", ')
    if pods is None:
        return text
    return text + _PODS.format(pause=pods.pause, cni_bin=pods.cni_bin, cni_conf=pods.cni_conf, runtime=pods.runtime, run=run)
