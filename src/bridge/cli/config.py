"""``cri-bridge config default|check|show``."""

from __future__ import annotations

import argparse
import sys

from bridge import config_docs
from bridge.cli.output import as_json
from bridge.config_files import read


def default(arguments: argparse.Namespace) -> int:
    """Print every key with its default and its meaning."""
    sys.stdout.write(config_docs.markdown() if arguments.markdown else config_docs.default_toml())
    return 0


def check(arguments: argparse.Namespace) -> int:
    """Read the files; faults are raised as ConfigError, all of them at once."""
    files = read(arguments.config).files
    print("valid: " + (", ".join(map(str, files)) or "no file was found, the defaults are in force"))
    return 0


def show(arguments: argparse.Namespace) -> int:
    """Print what is in force."""
    loaded = read(arguments.config)
    if arguments.output == "json":
        as_json(loaded.config.model_dump(mode="json"))
    else:
        sys.stdout.write(config_docs.show(loaded))
    return 0
