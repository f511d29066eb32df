"""``cri-bridge handlers spec``: what a container would get, and who changed what in it."""

from __future__ import annotations

import argparse
import difflib
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bridge._proto.bridge.admin import v1 as admin
from bridge._proto.runtime import v1 as pb
from bridge.cli.connection import ask
from bridge.cli.crictl_json import message
from bridge.cli.output import as_json
from bridge.errors import ConfigError, InvalidRequest


def run(arguments: argparse.Namespace) -> int:
    """Print the final spec to standard output; to standard error, or all as one JSON object, what each source changed."""
    file = arguments.container
    request = admin.PreviewSpecRequest(
        handler=arguments.handler,
        pod=bytes(message(pb.PodSandboxConfig, _read(arguments.pod), str(arguments.pod))),
        container=b"" if file is None else bytes(message(pb.ContainerConfig, _read(file), str(file))),
    )
    answer: admin.PreviewSpecResponse = ask(arguments, lambda client: client.admin.preview_spec(request))
    specs = [(step.source, json.loads(step.spec)) for step in answer.steps]
    changes = list(differences(specs))
    if arguments.output == "json":
        as_json({"spec": specs[-1][1], "changes": [{"source": who, "diff": lines} for who, lines in changes], "notes": answer.notes})
        return 0
    for source, lines in changes:
        print(f"# {source} {'changed' if lines else 'changed nothing'}", *lines, sep="\n", file=sys.stderr)
    for note in answer.notes:
        print(f"# note: {note}", file=sys.stderr)
    print(_text(specs[-1][1]))
    return 0


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}") from exc
    except ValueError as exc:
        raise InvalidRequest(f"not JSON: {exc}", field=str(path)) from exc


def differences(specs: Sequence[tuple[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    """Each source but the first, and the lines by which its spec differs from the one before; none for a source that changed nothing."""
    for (_, before), (source, after) in itertools.pairwise(specs):
        lines = difflib.unified_diff(_text(before).splitlines(), _text(after).splitlines(), "before", "after", n=2, lineterm="")
        yield source, list(lines)


def _text(spec: object) -> str:
    return json.dumps(spec, indent=2, sort_keys=True)
