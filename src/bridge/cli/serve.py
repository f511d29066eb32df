"""``cri-bridge serve`` and ``cri-bridge monitor``."""

from __future__ import annotations

import argparse

from bridge.config_files import load


def run(arguments: argparse.Namespace) -> int:
    """Run the server until SIGTERM."""
    config = load(arguments.config)
    if arguments.log_level:
        config = config.model_copy(update={"server": config.server.model_copy(update={"log_level": arguments.log_level})})
    from bridge import daemon

    return daemon.run(config)


def monitor(arguments: argparse.Namespace) -> int:
    """Only reached with options before the verb (``cri-bridge --config … monitor``), which the monitor has no use for."""
    from bridge.monitor.main import main

    return main(arguments.rest)
