"""The files that a pod's containers share: /etc/hostname, /etc/hosts, /etc/resolv.conf; and which hostname a pod has.

All but ``read`` is text in, text out. Sources: CRI v1 PodSandboxConfig.hostname and DNSConfig, resolv.conf(5), hosts(5).
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path

from bridge.core.entities import Sandbox
from bridge.core.model import DNSConfig, NamespaceMode, PodConfig
from bridge.errors import InvalidRequest
from bridge.host import files

HOST_RESOLV_CONF = Path("/etc/resolv.conf")
RESOLVED_UPLINKS = Path("/run/systemd/resolve/resolv.conf")
"""What systemd-resolved itself asks; /etc/resolv.conf names only its stub on the loopback interface then."""
HOST_HOSTS = Path("/etc/hosts")
_LARGEST_HOST_FILE = 16 << 20  # lists of unwanted names in /etc/hosts reach megabytes
_HOSTNAME_MAX = 64

_LOCAL_HOSTS = (
    "127.0.0.1\tlocalhost",
    "::1\tlocalhost ip6-localhost ip6-loopback",
    "fe00::0\tip6-localnet",
    "fe00::0\tip6-mcastprefix",
    "fe00::1\tip6-allnodes",
    "fe00::2\tip6-allrouters",
)


async def read(sandbox: Sandbox) -> dict[str, str]:
    """hostname, hosts and resolv.conf of a pod, by file name; looks at the host's where the pod gets those. Raises HostError."""
    dns = sandbox.config.dns
    host_network = _on_host_network(sandbox.config)
    host_dns = "" if _says_something(dns) else await files.read_text(HOST_RESOLV_CONF, _LARGEST_HOST_FILE)
    if only_local_servers(host_dns) and not host_network:
        host_dns = await files.read_text(RESOLVED_UPLINKS, _LARGEST_HOST_FILE) or host_dns
    host_hosts = await files.read_text(HOST_HOSTS, _LARGEST_HOST_FILE) if host_network else None
    return {
        "hostname": sandbox.hostname + "\n",
        "hosts": hosts(sandbox.hostname, sandbox.ips, host_text=host_hosts),
        "resolv.conf": resolv_conf(dns, host_dns),
    }


def check(config: PodConfig) -> None:
    """Refuse names that would not fit, or that would bring a line of their own. Raises InvalidRequest naming the field."""
    size = len(config.hostname.encode())
    if size > _HOSTNAME_MAX:
        raise InvalidRequest(f"{size} bytes are more than Linux's {_HOSTNAME_MAX}", field="config.hostname")
    if any(not c.isprintable() or c.isspace() for c in config.hostname):
        raise InvalidRequest("must not contain spaces or control characters", field="config.hostname")
    dns = config.dns or DNSConfig()
    for name, values in (("servers", dns.servers), ("searches", dns.searches), ("options", dns.options)):
        for index, value in enumerate(values):
            if not value or any(not c.isprintable() or c.isspace() for c in value):
                raise InvalidRequest(f"{value!r} must be one word", field=f"config.dns_config.{name}[{index}]")


def hostname(config: PodConfig) -> str:
    """The pod's hostname: the host's own where the UTS namespace is the host's, or where none is asked for."""
    return os.uname().nodename if _on_host_network(config) else config.hostname or os.uname().nodename


def resolv_conf(dns: DNSConfig | None, host_text: str) -> str:
    """resolv.conf of the pod: from the DNSConfig, or the host's when it is absent or empty."""
    if dns is None or not _says_something(dns):
        return host_text
    lines = []
    if dns.searches:
        lines.append("search " + " ".join(dns.searches))
    lines += [f"nameserver {server}" for server in dns.servers]
    if dns.options:
        lines.append("options " + " ".join(dns.options))
    return "\n".join(lines) + "\n"


def only_local_servers(text: str) -> bool:
    """Whether every name server of a resolv.conf is the host itself, which a pod with its own network can't reach."""
    servers = [words[1] for line in text.splitlines() if len(words := line.split()) > 1 and words[0] == "nameserver"]
    return bool(servers) and all(_is_loopback(server) for server in servers)


def hosts(name: str, ips: Sequence[str], *, host_text: str | None) -> str:
    """/etc/hosts: the host's own for host-network pods, else local names and the pod's addresses.

    A name with a domain is followed by its first part, as the kubelet writes it. The kubelet normally mounts its own
    file over this one.
    """
    if host_text is not None:
        return host_text
    lines = list(_LOCAL_HOSTS)
    if name:
        short = name.partition(".")[0]
        names = f"{name}\t{short}" if short and short != name else name
        lines += [f"{ip}\t{names}" for ip in ips]
    return "\n".join(lines) + "\n"


def _on_host_network(config: PodConfig) -> bool:
    return config.security.namespaces.network is NamespaceMode.NODE


def _says_something(dns: DNSConfig | None) -> bool:
    return dns is not None and bool(dns.servers or dns.searches or dns.options)


def _is_loopback(server: str) -> bool:
    try:
        return ipaddress.ip_address(server).is_loopback
    except ValueError:
        return False
