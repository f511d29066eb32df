"""A runtime whose command line has next to nothing of runc's, made of runc or crun, and the options that describe it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

_SCRIPT = r"""#!/bin/sh
# Whatever it does not know it refuses, so that a flag that was not translated fails a test.
set -u
real=@REAL@
refuse() { echo "odd: $*" >&2; exit 64; }
state='' systemd='' bundle='' pid='' tty='' what='' limits='' group='' id='' signal=''
while [ $# -gt 0 ]; do
    case $1 in
    --state-in) state=$2; shift 2 ;;
    --by-systemd) systemd=--systemd-cgroup; shift ;;
    --calm) shift ;;
    -*) refuse "unknown global argument $1" ;;
    *) break ;;
    esac
done
[ "$1" = about ] && { echo "odd runtime 7"; exit 0; }
[ -n "$state" ] || refuse "where is the state?"
[ "${ODD:-}" = yes ] || refuse "the environment lacks ODD"
verb=$1; shift
while [ $# -gt 0 ]; do
    case $1 in
    -b) bundle=$2; shift 2 ;;
    --pidfile=*) pid=${1#*=}; shift ;;
    --tty=*) tty=${1#*=}; shift ;;
    --what=*) what=${1#*=}; shift ;;
    --group=*) group=${1#*=}; shift ;;
    --limits=*) limits=${1#*=}; shift ;;
    --quick) [ "$verb" = enter ] || refuse "$verb can't be quick"; shift ;;
    -*) refuse "$verb: unknown argument $1" ;;
    *) if [ -z "$id" ]; then id=$1; else signal=$1; fi; shift ;;
    esac
done
run() { "$real" --root "$state" $systemd "$@"; }
case $verb in
make | enter)
    if [ "$verb" = make ]; then
        set -- create --bundle "$bundle"
    else
        set -- exec --detach --process "$what"
    fi
    [ -n "$pid" ] && set -- "$@" --pid-file "$pid"
    [ -n "$group" ] && set -- "$@" --cgroup "$group"
    [ -n "$tty" ] && set -- "$@" --console-socket "$tty"
    run --log "$state/.last-words" "$@" "$id" && exit 0  # stderr stays as it is: the container gets it too
    # crun's words, then runc's
    grep -q 'executable file.*not found\|open executable: No such\|exec: .*no such file' "$state/.last-words" && exit 42
    grep -q 'not a regular file\|open executable: Perm\|exec: .*\(permission denied\|is a directory\)' "$state/.last-words" && exit 43
    cat "$state/.last-words" >&2
    exit 1
    ;;
go) run start "$id" ;;
rm) run delete "$id" ;;
signal) run kill "$id" "$signal" ;;
look) run state "$id" ;;
tune) run update --resources "$limits" "$id" ;;
*) refuse "unknown verb $verb" ;;
esac
"""

OPTIONS: dict[str, Any] = {
    "launch": "create",
    "global_args": ["--calm"],
    "root_args": ["--state-in", "{root}"],
    "log_args": [],
    "systemd_args": ["--by-systemd"],
    "version_args": ["about"],
    "features": False,
    "verbs": {"create": "make", "start": "go", "exec": "enter", "delete": "rm", "kill": "signal", "state": "look", "update": "tune"},
    "verb_args": {"exec": ["--quick"]},
    "flags": {
        "bundle": "-b",
        "pid_file": "--pidfile=",
        "process": "--what=",
        "console": "--tty=",
        "detach": "",
        "force": "",
        "resources": "--limits=",
        "cgroup": "--group=",
    },
    "exec_cgroup": "controller",
    "start_exit_codes": {"42": "not-found", "43": "not-executable"},
    "abilities": {"seccomp": True, "user-namespaces": False},
    "annotations": {"example.com/odd": "yes"},
    "env": {"ODD": "yes"},
}
"""As in ``[runtime.handlers.NAME.options]``; ``path`` is what ``write`` returns."""


def write(directory: Path, real: str) -> Path:
    """The program, which drives ``real``."""
    path = shutil.which(real)
    assert path is not None
    script = directory / f"odd-{real}"
    script.write_text(_SCRIPT.replace("@REAL@", path))
    script.chmod(0o755)
    return script
