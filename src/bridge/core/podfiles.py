"""Contents of the files that a pod shares: /etc/hostname, /etc/hosts, /etc/resolv.conf. Pure text in, text out."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.core.model import DNSConfig
from bridge.errors import InvalidRequest

_LOCAL_HOSTS = (
    "127.0.0.1\tlocalhost",
    "::1\tlocalhost ip6-localhost ip6-loopback",
    "fe00::0\tip6-localnet",
    "fe00::0\tip6-mcastprefix",
    "fe00::1\tip6-allnodes",
    "fe00::2\tip6-allrouters",
)


def resolv_conf(dns: DNSConfig | None, host_text: str) -> str:
    """resolv.conf(5) of the pod: from the DNSConfig, or the host's when none was given (CRI DNSConfig).

    Raises InvalidRequest when a value could smuggle in a line of its own.
    """
    if dns is None or not (dns.servers or dns.searches or dns.options):
        return host_text
    for name, values in (("servers", dns.servers), ("searches", dns.searches), ("options", dns.options)):
        for value in values:
            if not value or any(c.isspace() for c in value):
                raise InvalidRequest(f"{value!r} must be one word", field=f"config.dns_config.{name}")
    lines = []
    if dns.searches:
        lines.append("search " + " ".join(dns.searches))
    lines += [f"nameserver {server}" for server in dns.servers]
    if dns.options:
        lines.append("options " + " ".join(dns.options))
    return "\n".join(lines) + "\n"


def hosts(hostname: str, ips: Sequence[str], *, host_text: str | None) -> str:
    """/etc/hosts: the host's own for host-network pods, else local names and the pod's addresses.

    The kubelet normally mounts its own file over this one.
    """
    if host_text is not None:
        return host_text
    lines = list(_LOCAL_HOSTS)
    if hostname:
        lines += [f"{ip}\t{hostname}" for ip in ips]
    return "\n".join(lines) + "\n"


def check_hostname(hostname: str) -> None:
    """Linux takes 64 bytes; control characters never belong there. Raises InvalidRequest."""
    if len(hostname.encode()) > 64:
        raise InvalidRequest(f"{len(hostname.encode())} bytes are more than Linux's 64", field="config.hostname")
    if any(not c.isprintable() or c.isspace() for c in hostname):
        raise InvalidRequest("must not contain spaces or control characters", field="config.hostname")
