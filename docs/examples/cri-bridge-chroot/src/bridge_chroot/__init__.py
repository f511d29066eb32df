"""An example of a runtime for cri-bridge: containers as plain processes in namespaces, started by a program of its own."""

from bridge.plugins import RuntimePlugin, hookimpl

from bridge_chroot.backend import open_handler
from bridge_chroot.options import ChrootOptions


@hookimpl
def bridge_register_runtime() -> RuntimePlugin:
    """Announce the runtime."""
    return RuntimePlugin(name="chroot", options=ChrootOptions, open=open_handler, api=1)
