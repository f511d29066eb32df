"""Doctor's questions about the set-up: runtimes, CNI, the pause binary, disk space, limits, the server itself."""

from __future__ import annotations

import ipaddress
import json
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from bridge.cli.findings import Finding, Host, State, finding
from bridge.config import Config

_MIB = 1 << 20
_PACKAGES = {"runc": "runc", "crun": "crun", "runsc": "runsc", "youki": "youki"}


def check(host: Host, config: Config) -> Iterator[Finding]:
    """Every finding about what is installed and configured."""
    yield from _runtimes(host, config)
    yield from _pause(host, config)
    yield from _cni(host, config)
    yield from _space(host, config)
    yield from _limits(host)
    yield _streams(config)
    yield _server(host, config)


def _runtimes(host: Host, config: Config) -> Iterator[Finding]:
    for name, handler in config.runtime.handlers.items():
        wanted = handler.options.get("path")
        if not handler.enabled or not isinstance(wanted, str):
            continue
        found = host.executable(wanted)
        program = Path(wanted).name
        yield finding(
            "runtimes",
            name,
            ok=found is not None,
            good=f"{found}" + (" (default handler)" if name == config.runtime.default_handler else ""),
            bad=f"{wanted!r} is not installed; the handler is disabled",
            mend=f"apt-get install {_PACKAGES[program]}"
            if program in _PACKAGES
            else f"install {program}, or set runtime.handlers.{name}.options",
            required=name == config.runtime.default_handler,
        )


def _pause(host: Host, config: Config) -> Iterator[Finding]:
    found = next((path for path in config.runtime.pause_binaries if host.executable(path)), None)
    yield finding(
        "runtimes",
        "pause binary",
        ok=found is not None,
        good=str(found),
        bad="none of runtime.pause_binaries exists: pods with a shared PID namespace can't start",
        mend="apt-get install catatonit",
    )


def _cni(host: Host, config: Config) -> Iterator[Finding]:
    directory = host.path(config.network.conf_dir)
    names = (
        sorted(path.name for path in directory.iterdir() if path.suffix in (".conf", ".conflist", ".json")) if directory.is_dir() else []
    )
    for name in names:
        types = _plugin_types(directory / name)
        if types is None:
            detail = "not a CNI configuration; the next one by name is used"
            yield Finding("network", name, State.ADVICE, detail, f"mend or remove {config.network.conf_dir / name}")
            continue
        yield Finding("network", "CNI configuration", State.OK, f"{config.network.conf_dir / name}: {', '.join(types)}")
        yield from _cni_plugins(host, config, types)
        yield _host_ports(directory / name, types, config)
        return
    where = config.network.conf_dir
    mend = f"install a network add-on, or write {where}/10-bridge.conflist as docs/operations.md shows"
    yield Finding("network", "CNI configuration", State.MISSING, f"none in {where}: only host-network pods can start", mend)


def _plugin_types(path: Path) -> list[str] | None:
    """The plugin types that the configuration names, or None when it isn't one."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        data: Any = json.loads(path.read_text())
        plugins = data.get("plugins", [data])
        return [str(item["type"]) for item in plugins] + [str(item["ipam"]["type"]) for item in plugins if item.get("ipam", {}).get("type")]
    return None


def _cni_plugins(host: Host, config: Config, types: list[str]) -> Iterator[Finding]:
    for name in dict.fromkeys(types):
        found = host.executable(name, directories=config.network.bin_dirs)
        yield finding(
            "network",
            f"CNI plugin {name}",
            ok=found is not None,
            good=str(found),
            bad=f"not in {', '.join(map(str, config.network.bin_dirs))}",
            mend="apt-get install containernetworking-plugins, or install the network add-on that brings it",
            required=True,
        )
    if {"portmap", "firewall"} & set(types):
        found = host.executable("iptables") or host.executable("nft")
        bad = "portmap and firewall need iptables or nft"
        yield finding("network", "iptables", ok=found is not None, good=str(found), bad=bad, mend="apt-get install iptables", required=True)


def _host_ports(path: Path, types: list[str], config: Config) -> Finding:
    plugins = json.loads(path.read_text())
    taken = any((item.get("capabilities") or {}).get("portMappings") for item in plugins.get("plugins", [plugins]))
    return finding(
        "network",
        "host ports",
        ok=taken or not set(config.network.host_port_plugins).isdisjoint(types),
        good="mapped by the network's plugins",
        bad="no plugin has the capability portMappings: pods that ask for host ports are refused",
        mend=f'add {{"type": "portmap", "capabilities": {{"portMappings": true}}}} to {config.network.conf_dir / path.name}',
    )


def _space(host: Host, config: Config) -> Iterator[Finding]:
    for what, path, wanted in (("state", config.images.root, 2048), ("run", config.server.run_dir, 16)):
        existing = host.path(path)
        while not existing.exists():
            existing = existing.parent
        usage = os.statvfs(existing)
        free = usage.f_bavail * usage.f_frsize // _MIB
        inodes = 100 * usage.f_favail // usage.f_files if usage.f_files else 100
        yield finding(
            "disk",
            f"{what} directory",
            ok=free >= wanted and inodes >= 5,
            good=f"{free} MiB and {inodes} % of inodes free for {path}",
            bad=f"only {free} MiB and {inodes} % of inodes free for {path}",
            mend="free space, or move server.state_dir and server.run_dir",
        )


def _limits(host: Host) -> Iterator[Finding]:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    yield finding(
        "limits",
        "open files",
        ok=files == resource.RLIM_INFINITY or files >= 65536,
        good=f"hard limit {files}",
        bad=f"hard limit {files}: four descriptors a container and one a stream are needed",
        mend="set LimitNOFILE=1048576 in the unit, or: ulimit -Hn 1048576",
    )
    pids = host.number("/proc/sys/kernel/pid_max")
    yield finding(
        "limits",
        "pid_max",
        ok=pids is None or pids >= 65536,
        good=str(pids),
        bad=f"{pids}: few for a node",
        mend="sysctl -w kernel.pid_max=4194304",
    )
    swaps = len(host.text("/proc/swaps").splitlines()) - 1
    yield finding(
        "limits",
        "swap",
        ok=swaps <= 0,
        good="off",
        bad="on: the kubelet refuses to start unless failSwapOn is false",
        mend="swapoff -a, or failSwapOn: false in the kubelet's configuration",
    )


def _streams(config: Config) -> Finding:
    section = config.streaming
    return finding(
        "server",
        "streams",
        ok=section.tls_certificate is not None or ipaddress.ip_address(section.address).is_loopback,
        good=f"on {section.address}" + (" with TLS" if section.tls_certificate else ""),
        bad=f"exec and attach on {section.address} without TLS: what is typed and shown goes over the network as it is",
        mend="set streaming.tls_certificate, or leave streaming.address at 127.0.0.1",
    )


def _server(host: Host, config: Config) -> Finding:
    path = config.server.socket
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2)
        try:
            probe.connect(str(host.path(path)))
        except OSError as exc:
            return Finding(
                "server", "socket", State.ADVICE, f"{path}: {exc.strerror or exc}", "systemctl start cri-bridge, or: cri-bridge serve"
            )
    return Finding("server", "socket", State.OK, f"{path} accepts connections")
