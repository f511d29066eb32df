"""``cri-bridge doctor``: what this host lacks, and the command that mends it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict

from bridge.cli import doctor_additions, doctor_kernel, doctor_security, doctor_setup, leaks
from bridge.cli.findings import Finding, Host, State
from bridge.cli.output import as_json, table
from bridge.config_files import load
from bridge.errors import InvalidRequest

_STYLE = {State.OK: "green", State.ADVICE: "yellow", State.MISSING: "bold red"}


def run(arguments: argparse.Namespace) -> int:
    """Print the findings; exit code 1 when something that pods need is missing. A wrong configuration is an error."""
    if arguments.leaks:
        return leaks.run(arguments)
    if arguments.remove:
        raise InvalidRequest("--remove goes with --leaks")
    findings = examine(Host(), arguments)
    missing = sum(found.state is State.MISSING for found in findings)
    if arguments.output == "json":
        as_json({"missing": missing, "findings": [asdict(found) for found in findings]})
    else:
        show(findings, everything=arguments.all)
    return 1 if missing else 0


def examine(host: Host, arguments: argparse.Namespace) -> Sequence[Finding]:
    """All findings, the gravest first, each area together."""
    config = load(arguments.config)
    found = [*doctor_kernel.check(host), *doctor_setup.check(host, config), *doctor_security.check(host, config)]
    found += doctor_additions.check(host, config)
    gravity = [State.MISSING, State.ADVICE, State.OK]
    return sorted(found, key=lambda one: gravity.index(one.state))  # stable: an area stays together


def show(findings: Sequence[Finding], *, everything: bool, worst: str = "missing") -> None:
    """Print the findings as a table, and how many there are; ``worst`` is the word for the gravest."""
    shown = [one for one in findings if everything or one.state is not State.OK]
    if shown:
        words = {State.MISSING: worst}
        table(
            ("STATE", "AREA", "WHAT", "FOUND", "MEND WITH"),
            [((words.get(one.state, one.state.value), _STYLE[one.state]), one.area, one.name, one.detail, one.mend) for one in shown],
        )
        print()
    count = {state: sum(one.state is state for one in findings) for state in State}
    print(f"{count[State.OK]} well, {count[State.ADVICE]} could be better, {count[State.MISSING]} {worst}")
    if not everything:
        print("(cri-bridge doctor --all lists everything)")
