"""cri-bridge plugin "kata": pods in virtual machines by Kata Containers, 1.x to 4.x. May import bridge's SDK only."""

from bridge.plugins import RuntimePlugin, hookimpl
from bridge_kata.handler import open_handler
from bridge_kata.limits import limits
from bridge_kata.options import KataOptions


@hookimpl
def bridge_register_runtime() -> RuntimePlugin:
    """Announce the runtime."""
    return RuntimePlugin(name="kata", options=KataOptions, open=open_handler, api=1, conformance_limits=limits)
