"""``cri-bridge serve`` and ``cri-bridge monitor``."""

from __future__ import annotations

import argparse
import os

from bridge.config import Config
from bridge.config_files import load

_FAILPOINTS = "CRI_BRIDGE_FAILPOINTS"  # as bridge.testing.failpoints, which an ordinary server does not even import


def run(arguments: argparse.Namespace) -> int:
    """Run the server until SIGTERM."""

    def read() -> Config:
        config = load(arguments.config)
        if not arguments.log_level:
            return config
        return config.model_copy(update={"server": config.server.model_copy(update={"log_level": arguments.log_level})})

    config = read()
    from bridge import daemon

    if os.environ.get(_FAILPOINTS):
        from bridge.testing.failpoints import watched_if_asked

        return daemon.run(config, read, watched_if_asked)
    return daemon.run(config, read)


def monitor(arguments: argparse.Namespace) -> int:
    """Only reached with options before the verb (``cri-bridge --config … monitor``), which the monitor has no use for."""
    from bridge.monitor.main import main

    return main(arguments.rest)
