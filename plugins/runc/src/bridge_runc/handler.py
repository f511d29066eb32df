"""Turns the options of one handler into the settings of the OCI SDK, and opens it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from bridge.oci.backend import open_backend
from bridge.oci.options import settings
from bridge.ports.host import HostContext
from bridge.ports.runtime import RuntimeBackend
from bridge_runc.options import RuncOptions


def open_handler(name: str, options: RuncOptions, context: HostContext) -> AbstractAsyncContextManager[RuntimeBackend]:
    """Open handler ``name``."""
    return open_backend(settings(name, options, context), context)
