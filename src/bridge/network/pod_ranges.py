"""The node's pod ranges (CRI UpdateRuntimeConfig): checked, and made into a CNI configuration by the operator's template.

As containerd does: only where ``network.conf_template`` is set, and only while no other configuration is there. Our own is written
anew when the ranges have changed; pods that are attached keep what they have, for an attachment carries its own configuration.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from pathlib import Path

import anyio.to_thread

from bridge import log
from bridge.errors import ConfigError, InvalidRequest
from bridge.host import files
from bridge.network.conf import parse_network
from bridge.network.conf_template import render
from bridge.network.source import scan

FILE = "10-cri-bridge.conflist"
"""What is written into the configuration directory; in order of names before what add-ons usually bring."""
FIELD = "runtime_config.network_config.pod_cidr"

_LIMIT = 1 << 20
_ROUTES = {4: "0.0.0.0/0", 6: "::/0"}
_logger = log.get("network")


def parse_ranges(text: str) -> list[str]:
    """The ranges of a comma-separated list, each as its network's address and length. Raises InvalidRequest naming the field."""
    return [_range(part.strip()) for part in text.split(",")] if text else []


def _range(text: str) -> str:
    try:
        if not re.fullmatch(r"[0-9a-fA-F:.]+/\d{1,3}", text):
            raise ValueError("it is not an address with the length of its prefix")
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError as exc:
        raise InvalidRequest(f"{text!r} is not a range such as 10.1.0.0/24: {exc}", field=FIELD) from exc


async def write_configuration(ranges: Sequence[str], template: Path, conf_dir: Path, bin_dirs: Sequence[Path]) -> bool:
    """Write the configuration that ``template`` makes of ``ranges`` unless another one is there; whether it was written.

    Raises ConfigError (the template, or what becomes of it), HostError (it can't be written).
    """
    found = (await anyio.to_thread.run_sync(scan, conf_dir, bin_dirs)).network
    if found is not None and found.source != FILE:
        _logger.info("pod ranges %s: CNI configuration %s is there already, none is made", ", ".join(ranges), found.source)
        return False
    text = await files.read_text(template, limit=_LIMIT)
    if not text:
        raise ConfigError(f"network.conf_template: {template} does not exist or is empty")
    families = sorted({ipaddress.ip_network(each).version for each in ranges})
    values = {"PodCIDR": ranges[0], "PodCIDRRanges": ranges, "Routes": [_ROUTES[family] for family in families]}
    content = render(text, values, f"network.conf_template: {template}")
    parse_network(content.encode(), f"{template} (filled in).conflist")
    if content == await files.read_text(conf_dir / FILE, limit=_LIMIT):
        return False
    await files.replace(conf_dir / FILE, content, mode=0o644)
    _logger.info("CNI configuration %s made of %s for pod ranges %s", conf_dir / FILE, template, ", ".join(ranges))
    return True
