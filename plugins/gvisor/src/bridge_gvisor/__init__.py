"""cri-bridge plugin "gvisor": pods in gVisor sandboxes, by the command line of runsc. May import bridge's SDK only."""

from bridge.plugins import RuntimePlugin, hookimpl
from bridge_gvisor.handler import open_handler
from bridge_gvisor.limits import limits
from bridge_gvisor.options import GvisorOptions


@hookimpl
def bridge_register_runtime() -> RuntimePlugin:
    """Announce the runtime."""
    return RuntimePlugin(name="gvisor", options=GvisorOptions, open=open_handler, api=1, conformance_limits=limits)
