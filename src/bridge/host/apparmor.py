"""AppArmor on this host: which profiles are loaded, and loading one with apparmor_parser.

Everything is looked up below a ``root`` directory, so that a recorded tree with a parser of its own can stand in for a host.
Sources: apparmor(7), apparmor_parser(8), securityfs's apparmor/profiles.
"""

from __future__ import annotations

import os
from pathlib import Path

from anyio.to_thread import run_sync

from bridge.errors import Denied, HostError, Unsupported
from bridge.host import process

_PROFILES = Path("sys/kernel/security/apparmor/profiles")
_SWITCH = Path("sys/module/apparmor/parameters/enabled")
_POLICY = Path("etc/apparmor.d")
_PARSERS = tuple(Path(directory, "apparmor_parser") for directory in ("sbin", "usr/sbin", "usr/local/sbin", "usr/bin"))
_LOAD_SECONDS = 30.0


async def loaded(root: Path = Path("/")) -> frozenset[str]:
    """Names of the profiles that the kernel holds. Raises HostError, Denied."""
    return await run_sync(loaded_now, root)


def enabled(root: Path = Path("/")) -> bool:
    """Whether it is on, with its files mounted: without securityfs neither runtimes nor we can tell profiles. Blocking."""
    try:
        on = (root / _SWITCH).read_text().startswith("Y")
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as exc:
        raise HostError(f"can't read /{_SWITCH}: {exc.strerror}", errno=exc.errno) from exc
    return on and (root / _PROFILES).parent.is_dir()


def loaded_now(root: Path = Path("/")) -> frozenset[str]:
    """As ``loaded``. Blocking."""
    # A line is "name (mode)"; a name may hold spaces and parentheses itself.
    try:
        text = (root / _PROFILES).read_text("utf-8", "surrogateescape")
    except PermissionError as exc:
        raise Denied(f"can't read /{_PROFILES}: {exc.strerror}") from exc
    except OSError as exc:
        raise HostError(f"can't read /{_PROFILES}: {exc.strerror}", errno=exc.errno) from exc
    return frozenset(line.rpartition(" (")[0] for line in text.splitlines() if " (" in line)


def parser(root: Path = Path("/")) -> Path | None:
    """The parser's program, None where it isn't installed. Blocking."""
    return next((root / path for path in _PARSERS if os.access(root / path, os.X_OK)), None)


def has_policy_file(name: str, root: Path = Path("/")) -> bool:
    """Whether the host's policy has such a file (``abi/3.0``, ``tunables/global``) for a profile to include. Blocking."""
    return (root / _POLICY / name).is_file()


def own_label(root: Path = Path("/")) -> str:
    """The profile that this process runs under, "unconfined" for none. Blocking."""
    try:
        label = (root / "proc/self/attr/current").read_text("utf-8", "replace")
    except OSError:  # not readable where another security module owns the file
        label = ""
    return label.strip("\0\n").rpartition(" (")[0] or "unconfined"


async def load(text: str, root: Path = Path("/")) -> None:
    """Compile and load a policy, replacing what has the same name. Raises Unsupported without a parser, HostError."""
    program = await run_sync(parser, root)
    if program is None:
        raise Unsupported("apparmor_parser is not installed (package apparmor)")
    # -K: the result is not kept in the host's cache, which is keyed by file names; -r: replace, so that two loads do no harm.
    done = await process.run([str(program), "-K", "-r"], input=text.encode(), timeout=_LOAD_SECONDS)
    if done.returncode != 0:
        said = " ".join(done.stderr.decode("utf-8", "replace").split()) or "it said nothing"
        raise HostError(f"apparmor_parser failed (exit code {done.returncode}): {said[:1000]}")
