"""``cri-bridge handlers``: which runtime handlers a pod may ask for, and why one is disabled."""

from __future__ import annotations

import argparse

from bridge._proto.bridge.admin import v1 as admin
from bridge.cli.connection import ask
from bridge.cli.output import as_json, table


def run(arguments: argparse.Namespace) -> int:
    """Print the handlers of the running server."""
    answer: admin.HandlersResponse = ask(arguments, lambda client: client.admin.handlers())
    if arguments.output == "json":
        as_json([_plain(handler) for handler in answer.handlers])
        return 0
    rows = [
        (
            (handler.name, "bold"),
            handler.plugin,
            ("enabled", "green") if handler.enabled else ("disabled", "red"),
            "default" if handler.default else "",
            handler.version.splitlines()[0] if handler.version else "",
            handler.reason or _missing(handler),
        )
        for handler in answer.handlers
    ]
    table(("HANDLER", "PLUGIN", "STATE", "", "VERSION", "REASON OR MISSING ABILITIES"), rows)
    return 0


def _missing(handler: admin.Handler) -> str:
    names = [ability.name for ability in handler.abilities if ability.support == "unsupported"]
    return "without " + ", ".join(names) if names else ""


def _plain(handler: admin.Handler) -> dict[str, object]:
    return {
        "name": handler.name,
        "plugin": handler.plugin,
        "enabled": handler.enabled,
        "default": handler.default,
        "reason": handler.reason,
        "version": handler.version,
        "abilities": {ability.name: ability.support for ability in handler.abilities},
    }
