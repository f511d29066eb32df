"""The signal that stops a container: the request's, else the image's, else SIGTERM."""

from __future__ import annotations

import signal

from bridge import log
from bridge.core.model import ContainerConfig
from bridge.errors import InvalidRequest
from bridge.ports.images import Image

_logger = log.get("core.stop")
_DEFAULT = "SIGTERM"
_NEAR_MINIMUM = 15
"""The CRI names SIGRTMIN to SIGRTMIN+15 and, counted from the other end, those above."""


def of_container(config: ContainerConfig, image: Image) -> str:
    """The canonical name. Raises InvalidRequest for the request's; a wrong one of an image is logged and means SIGTERM, as with peers."""
    if config.stop_signal:
        return canonical(config.stop_signal)
    if not image.config.stop_signal:
        return _DEFAULT
    try:
        return canonical(image.config.stop_signal)
    except InvalidRequest:
        _logger.warning("image %s has the unknown stop signal %r: %s is used", image.id, image.config.stop_signal, _DEFAULT)
        return _DEFAULT


def canonical(name: str) -> str:
    """The signal as the CRI writes it, such as SIGTERM or SIGRTMIN+3; the bare number where it has no name. Raises InvalidRequest."""
    found, text = number(name), name.strip().upper()
    if found >= signal.SIGRTMIN:
        above, below = found - signal.SIGRTMIN, signal.SIGRTMAX - found
        base, offset = ("SIGRTMIN", f"+{above}") if above <= _NEAR_MINIMUM else ("SIGRTMAX", f"-{below}")
        return base + offset if above and below else base
    if not text.isdigit():
        return f"SIG{text.removeprefix('SIG')}"
    try:
        return signal.Signals(found).name
    except ValueError:  # 32 and 33, which the C library keeps to itself
        return text


def number(name: str) -> int:
    """SIGTERM, TERM, 15, RTMIN+3 … as image configs and the CRI write them. Raises InvalidRequest."""
    text = name.strip().upper()
    if text.isdigit() and 0 < int(text) <= signal.SIGRTMAX:
        return int(text)
    text = text.removeprefix("SIG")
    base, sign, offset = text.partition("+") if "+" in text else text.partition("-")
    found = getattr(signal, f"SIG{base}", None)
    if isinstance(found, signal.Signals) and (not sign or (base.startswith("RT") and offset.isdigit())):
        total = int(found) + (int(offset) if sign == "+" else -int(offset) if sign else 0)
        if 0 < total <= signal.SIGRTMAX:
            return total
    raise InvalidRequest(f"{name!r} is not a known signal", field="config.stop_signal")
