"""What the command kata-runtime of Kata 1.13 does, as far as its caller can see, with runc in place of the guest.

It keeps kata-runtime's rules: a sandbox container first, whose id containers name in an annotation; no deletion of a sandbox that
still has containers; state in a fixed place, which ``--root`` does not move; a container that runs is not deleted without
``--force``; what is unknown is deleted with success. Each invocation is written to the file that KATA_CALLS names. The process in the
pid file is runc's container, which stands for kata-shim. Sources: kata-containers/runtime 1.13, cli/*.go.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

MAPPING = Path("/run/kata-containers/containers-mapping")
GLOBALS = ("--root", "--log", "--log-format", "--kata-config")


def fail(message: str) -> NoReturn:
    if LOG:
        with open(LOG, "a") as file:
            file.write(json.dumps({"level": "error", "msg": message, "time": ""}) + "\n")
    print(message, file=sys.stderr)
    sys.exit(1)


def runc(*arguments: str) -> list[str]:
    return ["runc", "--root", os.environ["KATA_RUNC_ROOT"], *arguments]


def sandbox_of(ident: str) -> str:
    """ "" for an id that is not known."""
    found = list((MAPPING / ident).iterdir()) if (MAPPING / ident).exists() else []
    return found[0].name if found else ""


def members(sandbox: str) -> list[str]:
    ours = MAPPING.iterdir() if MAPPING.exists() else ()
    return [each.name for each in ours if each.name != sandbox and sandbox_of(each.name) == sandbox]


def run(arguments: list[str]) -> None:
    ident, bundle = arguments[-1], Path(arguments[arguments.index("--bundle") + 1])
    annotations = json.loads((bundle / "config.json").read_text())["annotations"]
    kind = annotations["io.kubernetes.cri.container-type"]
    sandbox = ident if kind == "sandbox" else annotations["io.kubernetes.cri.sandbox-id"]
    if kind == "sandbox" and "fail" in os.environ.get("KATA_TROUBLE", ""):
        fail("qemu-system-x86_64: Could not access KVM kernel module: No such file or directory")
    if kind != "sandbox" and not sandbox_of(sandbox):
        fail(f"sandbox {sandbox} does not exist")
    (MAPPING / ident).mkdir(parents=True)
    (MAPPING / ident / sandbox).mkdir()
    os.execvp("runc", runc("run", *arguments))


def delete(arguments: list[str]) -> None:
    ident = arguments[-1]
    if not sandbox_of(ident):
        return
    if ident == sandbox_of(ident) and members(ident):
        fail(f"sandbox {ident} has containers: {members(ident)}")
    done = subprocess.run(runc("delete", *arguments), capture_output=True, text=True, check=False)
    if done.returncode and "does not exist" not in done.stderr:
        fail(done.stderr.strip() or "Container still running, should be stopped")
    for mapped in (MAPPING / ident).iterdir():
        mapped.rmdir()
    (MAPPING / ident).rmdir()


def main() -> None:
    global LOG
    arguments = sys.argv[1:]
    with open(os.environ["KATA_CALLS"], "a") as file:
        file.write(" ".join(arguments) + "\n")
    while arguments and arguments[0] in GLOBALS:
        if arguments[0] == "--log":
            LOG = arguments[1]
        arguments = arguments[2:]
    verb, arguments = arguments[0], arguments[1:]
    if verb == "--version":
        print("kata-runtime  : 1.13.0\n   commit   : 04f29832\n   OCI specs: 1.0.1-dev")
    elif verb == "run":
        run(arguments)
    elif verb == "delete":
        delete(arguments)
    elif verb == "list":
        print(json.dumps([]))
    elif not sandbox_of(arguments[-2 if verb == "kill" else -1]):
        fail(f"Container ID ({arguments}) does not exist")
    else:
        os.execvp("runc", runc(verb, *arguments))


LOG = ""
main()
