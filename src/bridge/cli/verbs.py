"""How the parser's verbs are made, and the options that many of them share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeAlias

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def verb(verbs: Verbs, name: str, run: str, help: str) -> argparse.ArgumentParser:
    """Add the verb ``name``, carried out by the function that ``run`` names as ``module:function``."""
    added = verbs.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
    added.set_defaults(run=run)
    return added


def output(of: argparse.ArgumentParser) -> None:
    """Let ``of`` take --output."""
    of.add_argument("-o", "--output", choices=("table", "json"), default="table", help="how to print (default: table)")


def socket(of: argparse.ArgumentParser) -> None:
    """Let ``of`` take what every verb takes that asks a running server."""
    of.add_argument("--socket", type=Path, help="socket of the server (default: the configured one)")
    of.add_argument("--timeout", type=float, default=None, help="seconds to wait for the answer")
    output(of)
