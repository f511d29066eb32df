"""``cri-bridge plugins ls`` and ``plugins new``: what is installed, and the beginning of one more."""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from string import Template

from bridge import __version__
from bridge.cli.output import as_json, table
from bridge.errors import AlreadyExists, HostError, InvalidRequest
from bridge.plugins import API_VERSION, Found, Plugins

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def ls(arguments: argparse.Namespace) -> int:
    """List the installed plugins; 1 when one of them is faulty. Asks no server: it loads them as a server would."""
    plugins = Plugins()
    plugins.load_entry_points()
    if arguments.output == "json":
        as_json([asdict(found) for found in plugins.found])
    else:
        rows = [
            (
                (found.name, "bold"),
                f"{found.distribution} {found.version}".strip(),
                str(found.api or ""),
                ("faulty", "red") if found.fault else ("usable", "green"),
                found.fault or _what(found),
            )
            for found in plugins.found
        ]
        table(("PLUGIN", "DISTRIBUTION", "API", "STATE", "WHAT IT SERVES, OR WHAT IS WRONG"), rows)
    return 1 if plugins.faults else 0


def _what(found: Found) -> str:
    parts = [f"handlers with plugin = {', '.join(repr(name) for name in found.runtimes)}"] if found.runtimes else []
    return "; ".join([*parts, *found.hooks]) or "nothing in this version"


def new(arguments: argparse.Namespace) -> int:
    """Write the skeleton of a plugin distribution."""
    name: str = arguments.name
    top: Path = (arguments.dir or Path()) / f"cri-bridge-{name}"
    write(name, top, binary=arguments.binary or name)
    where = top if top.is_absolute() else f"./{top}"
    print(f"wrote {top}; next:\n  pip install -e '{where}[test]' && cri-bridge plugins ls\n  pytest {where}")
    return 0


def write(name: str, top: Path, *, binary: str) -> None:
    """The distribution in directory ``top``, which must be new. Raises InvalidRequest, AlreadyExists, HostError."""
    if not _NAME.fullmatch(name):
        raise InvalidRequest(f"{name!r} is no name for a plugin: small letters, digits and single dashes, beginning with a letter")
    package = f"bridge_{name.replace('-', '_')}"
    words = {
        "name": name,
        "package": package,
        "title": "".join(part.capitalize() for part in name.split("-")),
        "distribution": f"cri-bridge-{name}",
        "binary": binary,
        "release": ".".join(__version__.split(".")[:2]),
        "api": str(API_VERSION),
    }
    places = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        "init.py": f"src/{package}/__init__.py",
        "options.py": f"src/{package}/options.py",
        "handler.py": f"src/{package}/handler.py",
        "test_plugin.py": f"tests/test_{package}.py",
        "test_conformance.py": "tests/test_conformance.py",
    }
    try:
        top.mkdir(parents=True)
        for template, place in places.items():
            text = (resources.files("bridge.cli") / "skeleton" / f"{template}.tmpl").read_text("utf-8")
            path = top / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(Template(text).substitute(words), "utf-8")
        (top / "src" / package / "py.typed").touch()
    except FileExistsError as exc:
        raise AlreadyExists(f"{exc.filename} exists already") from exc
    except OSError as exc:
        raise HostError(f"{exc.filename}: {exc.strerror}", errno=exc.errno) from exc
