"""What `[runtime.handlers.NAME.options]` may hold for a handler with `plugin = "runc"`."""

from __future__ import annotations

from bridge.oci.options import CliOptions


class RuncOptions(CliOptions):
    """Every option has a default; the usual handler sets ``path`` alone."""

    path: str = "runc"
    """The runtime's binary: an absolute path, or a name looked up in PATH. Why: runc is packaged everywhere."""
