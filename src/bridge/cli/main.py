"""The ``cri-bridge`` command: its verbs, and what errors look like.

Each verb names the function that carries it out as text, so that a verb imports only what it needs.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bridge import __version__
from bridge.cli import conform_verb, image_verbs
from bridge.cli.verbs import Verbs, output, socket, verb
from bridge.errors import BridgeError

FAILED = 1
INTERRUPTED = 130


def main(words: Sequence[str]) -> int:
    """Run the verb in ``words``; expected failures are one line on stderr and exit code 1."""
    arguments = parser().parse_args(words)
    module, _, function = arguments.run.partition(":")
    try:
        return int(getattr(importlib.import_module(module), function)(arguments))
    except BridgeError as exc:
        for line in str(exc).splitlines():
            print(f"cri-bridge: {line}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output (head, less) has gone: say nothing more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    top = argparse.ArgumentParser(
        prog="cri-bridge", description="A Kubernetes CRI server that runs each pod on the backend its RuntimeClass names."
    )
    top.add_argument("--version", action="version", version=f"cri-bridge {__version__}")
    top.add_argument(
        "--config",
        action="append",
        type=Path,
        metavar="PATH",
        help="configuration file, or directory of *.toml; may be repeated (default: config.toml and conf.d in /etc/cri-bridge)",
    )
    verbs = top.add_subparsers(title="verbs", metavar="VERB", required=True)
    _server_verbs(verbs)
    _config_verbs(verbs)
    image_verbs.add(verbs)
    _plugin_verbs(verbs)
    _question_verbs(verbs)
    return top


def _server_verbs(verbs: Verbs) -> None:
    serve = verb(verbs, "serve", "bridge.cli.serve:run", "run the CRI server in the foreground")
    serve.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="overrides server.log_level")
    # The verb that __main__ handles before this parser is made; here for the help text only.
    monitor = verb(verbs, "monitor", "bridge.cli.serve:monitor", "run the monitor process (the server starts it by itself)")
    monitor.add_argument("rest", nargs=argparse.REMAINDER, help="the monitor's own arguments (see cri-bridge monitor --help)")
    demo = verb(verbs, "demo", "bridge.cli.demo:run", "run pods on every handler under a private root, and clean up")
    demo.add_argument("--handler", action="append", help="only this handler, or plugin with its defaults; may be repeated")
    demo.add_argument("--keep-logs", type=Path, metavar="DIR", help="copy the logs of server and monitor here at the end")


def _config_verbs(verbs: Verbs) -> None:
    config = verbs.add_parser("config", help="print or check the configuration", description="Print or check the configuration.")
    actions = config.add_subparsers(metavar="ACTION", required=True)
    default = verb(
        actions, "default", "bridge.cli.config:default", "print a configuration file with every key, its default and its meaning"
    )
    default.add_argument("--markdown", action="store_true", help="as the page docs/config.md")
    verb(actions, "check", "bridge.cli.config:check", "check the configuration files and say what is wrong where")
    output(verb(actions, "show", "bridge.cli.config:show", "print the configuration in force and the file each value is from"))


def _plugin_verbs(verbs: Verbs) -> None:
    plugins = verbs.add_parser("plugins", help="list the plugins, or begin a new one", description="List the plugins, or begin a new one.")
    actions = plugins.add_subparsers(metavar="ACTION", required=True)
    output(verb(actions, "ls", "bridge.cli.plugins:ls", "list the installed plugins, their versions, and what is wrong with one"))
    new = verb(actions, "new", "bridge.cli.plugins:new", "write the skeleton of a plugin: a distribution that works, with tests")
    new.add_argument("name", help="the plugin's name, as in plugin = NAME; the directory is cri-bridge-NAME")
    new.add_argument("--dir", type=Path, help="where to make that directory (default: here)")
    new.add_argument("--binary", help="the OCI runtime that it drives (default: NAME)")


def _question_verbs(verbs: Verbs) -> None:
    handlers = verb(verbs, "handlers", "bridge.cli.handlers:run", "list the runtime handlers, and why one is disabled")
    socket(handlers)
    actions = handlers.add_subparsers(metavar="[ACTION]")
    spec = verb(actions, "spec", "bridge.cli.spec:run", "print the OCI spec that a container would get, and who changed what in it")
    spec.add_argument("handler", help="name of the handler")
    spec.add_argument("--pod", type=Path, required=True, metavar="FILE", help="the pod, as crictl runp takes it")
    words = "the container, as crictl create takes it; without one, the spec of the container that the pod itself has on such a handler"
    spec.add_argument("--container", type=Path, metavar="FILE", help=words)
    socket(spec)
    trace = verb(verbs, "trace", "bridge.cli.trace:run", "show where the start of a pod spent its time")
    trace.add_argument("pod", help="id of the pod sandbox, or the beginning of one")
    socket(trace)
    doctor = verb(verbs, "doctor", "bridge.cli.doctor:run", "say what this host lacks, and the command that mends it")
    doctor.add_argument("--all", action="store_true", help="also list what is well, or with --leaks what may be another server's")
    doctor.add_argument("--leaks", action="store_true", help="list what lies on this host that no record of the server owns")
    doctor.add_argument("--remove", action="store_true", help="with --leaks: have the server remove it")
    output(doctor)
    output(verb(verbs, "check", "bridge.cli.check:run", "say whether records, images and everything else the server keeps are sound"))
    wipe = verb(verbs, "wipe", "bridge.cli.wipe:run", "say which pods would be removed, or remove them")
    wipe.add_argument("--force", action="store_true", help="remove them; without a running server all of its state, too")
    wipe.add_argument("--images", action="store_true", help="also the images that nothing uses then")
    output(wipe)
    conform_verb.add(verbs)
