"""cri-bridge plugin "runc": handlers on runc, crun, youki or any other runtime with runc's command line. May import bridge's SDK only."""

from bridge.plugins import RuntimePlugin, hookimpl
from bridge_runc.handler import open_handler
from bridge_runc.options import RuncOptions


@hookimpl
def bridge_register_runtime() -> RuntimePlugin:
    """Announce the runtime."""
    return RuntimePlugin(name="runc", options=RuncOptions, open=open_handler, api=1)
