"""The fake's command line: the verbs start and delete and the flag --version of ``containerd-shim-kata-v2``, and its own "serve"."""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from pathlib import Path

from bridge.testing.fake_kata import places, specs

VERSION = "Kata Containers containerd shim (Golang): id: io.containerd.kata.v2, version: 4.1.0, commit: fake"


def main() -> None:
    """The first argument is the path of the command as it was called; the rest is its command line."""
    command, *words = sys.argv[1:]
    parser = argparse.ArgumentParser(prog=places.SHIM, allow_abbrev=False)
    parser.add_argument("--version", "-v", action="store_true")
    for name in ("namespace", "address", "publish-binary", "id", "bundle"):
        parser.add_argument(f"-{name}", default="")
    parser.add_argument("-debug", action="store_true")
    parser.add_argument("verb", nargs="?", default="")
    given = parser.parse_args(words)
    if given.version:
        print(VERSION)
        return
    try:
        if not given.namespace:
            raise ValueError("shim namespace cannot be empty")
        if not given.publish_binary:
            raise ValueError("shim publish binary cannot be empty")
        if given.verb == "start":
            print(_start(command, given.namespace, given.id), end="")
        elif given.verb == "delete":
            sys.stdout.buffer.write(_delete(given.id))
        else:
            raise ValueError(f"unknown verb {given.verb!r}")
    except (OSError, ValueError, LookupError) as exc:
        sys.exit(f"{places.SHIM}: {exc}")


def _start(command: str, namespace: str, ident: str) -> str:
    """Start the shim of the bundle in this directory; for a member say where its pod's is, alive or not. Returns the address."""
    bundle = specs.load(Path.cwd())
    if not bundle.is_sandbox:
        address = places.shim_socket(namespace, bundle.sandbox_id)
        Path("address").write_text(address)
        return address
    address = places.shim_socket(namespace, ident)
    path = Path(address.removeprefix("unix://"))
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen()
        # It has the command's own name and arguments, as a process of Kata's has: that is how it is found.
        own = ["-namespace", namespace, "-address", "", "-publish-binary", "/bin/true", "-id", ident]
        argv = [command, "-c", "from bridge.testing.fake_kata.serve import main; import sys; main(sys.argv[2])", *own]
        _spawn(argv, listener)
    Path("address").write_text(address)
    return address


def _spawn(argv: list[str], listener: socket.socket) -> None:
    os.dup2(listener.fileno(), 3)
    null = subprocess.DEVNULL
    child = subprocess.Popen(
        argv, executable=os.environ[places.PYTHON_ENV], stdin=null, stdout=null, stderr=null, pass_fds=[3], process_group=0
    )
    Path("shim.pid").write_text(str(child.pid))
    child.returncode = 0  # nobody waits for it: it stays when this ends


def _delete(ident: str) -> bytes:
    """Clean up after a shim that has died. Returns the encoded DeleteResponse."""
    from bridge.testing.fake_kata.cleanup import clean_up

    bundle = specs.load(Path.cwd())
    return clean_up(ident if bundle.is_sandbox else bundle.sandbox_id, ident)


main()
