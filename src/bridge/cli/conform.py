"""``cri-bridge conform``: a private server with one handler, everything a kubelet relies on, and a report."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from bridge.cli.output import table
from bridge.errors import HostError, InvalidRequest
from bridge.testing.conformance import catalogue
from bridge.testing.conformance.report import FORMATS, as_text, line
from bridge.testing.conformance.results import Report, Result
from bridge.testing.conformance.target import Target, read_limits, target


def run(arguments: argparse.Namespace) -> int:
    """Run the suite; exit code 1 when the handler does not conform."""
    if arguments.list:
        return _list(arguments)
    if not arguments.handler:
        raise InvalidRequest("name the handler: cri-bridge conform HANDLER")
    if find_spec("pytest") is None:
        raise HostError("the suite is run by pytest, which is not installed here: pip install 'cri-bridge[conform]'")
    report = _run(arguments, _target(arguments))
    text = FORMATS[arguments.report](report)
    if arguments.output is None:
        print(text, end="")
    else:
        _write(arguments.output, text)
        print(as_text(report), end="", file=sys.stderr)
    return 0 if report.passed else 1


def _target(arguments: argparse.Namespace) -> Target:
    limits: Mapping[str, str] = {} if arguments.limits is None else read_limits(arguments.limits)
    return target(
        arguments.handler, config=arguments.config, limits=limits, socket=arguments.socket, slowness=arguments.slowness, plugin=""
    )


def _run(arguments: argparse.Namespace, chosen: Target) -> Report:
    from bridge.testing.conformance.session import run as run_session

    if chosen.socket is not None:
        print(f"the server on {chosen.socket} is not the suite's own: specs that kill it are left out", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="cri-bridge-conform-") as root:
        return run_session(chosen, only=arguments.only, skip=arguments.skip, quick=arguments.quick, tell=_tell, root=Path(root))


def _tell(result: Result) -> None:
    print(line(result), file=sys.stderr, flush=True)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise HostError(f"can't write the report to {path}: {exc.strerror}", errno=exc.errno) from exc


def _list(arguments: argparse.Namespace) -> int:
    chosen = catalogue.select(only=arguments.only, skip=arguments.skip, quick=arguments.quick)
    rows = [((each.name, "bold"), each.group, "quick" if each.quick else "", each.purpose, each.source) for each in chosen]
    table(("SPEC", "GROUP", "", "PURPOSE", "SOURCE"), rows)
    return 0
