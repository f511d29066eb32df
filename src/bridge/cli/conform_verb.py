"""How ``cri-bridge conform`` is asked for."""

from __future__ import annotations

import argparse
from pathlib import Path

from bridge.cli.verbs import Verbs, verb


def add(verbs: Verbs) -> None:
    """Add the verb."""
    conform = verb(verbs, "conform", "bridge.cli.conform:run", "test a runtime handler against what a kubelet relies on")
    conform.add_argument("handler", help="name of the handler, or of a plugin whose options all have defaults", nargs="?")
    # Also after the verb, where people look for it; not given, the one before the verb stays.
    conform.add_argument("--config", action="append", type=Path, default=argparse.SUPPRESS, metavar="PATH", help="configuration with it")
    conform.add_argument("--socket", type=Path, help="test a server that runs already; without specs that kill it")
    conform.add_argument("--only", action="append", default=[], metavar="SPEC", help="only these specs or groups (globs); may be repeated")
    conform.add_argument("--skip", action="append", default=[], metavar="SPEC", help="not these; may be repeated")
    conform.add_argument("--quick", action="store_true", help="the short run: a third of the specs, the most telling ones")
    conform.add_argument("--limits", type=Path, metavar="FILE", help="TOML file of known limits: SPEC = reason")
    conform.add_argument("--slowness", type=float, default=1.0, metavar="FACTOR", help="multiply every deadline, as for emulated machines")
    conform.add_argument("--report", choices=("text", "json", "junit"), default="text", help="form of the report (default: text)")
    conform.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the report there instead of to standard output")
    conform.add_argument("--list", action="store_true", help="list the specs and run none")
