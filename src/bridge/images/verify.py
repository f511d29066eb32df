"""Runs the process that verifies one layer, and says what it found."""

from __future__ import annotations

import contextlib
import math
import os
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bridge.errors import HostError
from bridge.host import process
from bridge.images.disk import blocking
from bridge.images.listing import LISTING
from bridge.images.rows import Layer
from bridge.images.unpack import FILES, TAR_LOG, import_path

_CODE = "import sys; sys.path[:0] = sys.argv[1].split(':'); from bridge.images.verify_child import main; sys.exit(main(sys.argv[2:]))"
_OUTPUT_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong with a layer, if anything; ``disk_bytes`` and ``inodes`` of its directory as counted now (0: not counted)."""

    problems: Sequence[str]
    disk_bytes: int = 0
    inodes: int = 0


async def verify(directory: Path, layer: Layer, *, content: bool, rate: int = 0) -> Verdict:
    """Compare the layer in ``directory`` with what was written down of it: all attributes, and with ``content`` every byte.

    ``rate`` (bytes a second) makes it a slow reader that gives way to everything else. Raises HostError when it can't be done.
    """
    absent = await blocking(_absent, directory, layer)
    if absent:
        return Verdict([f"{name} is missing" for name in absent])
    opened = await blocking(_open, directory, layer)
    try:
        log, files = opened
        diff_id = layer.diff_id if layer.exact else ""
        words = (directory / FILES, log, files, diff_id, layer.listing, int(content), rate)
        argv = [sys.executable, "-I", "-S", "-c", _CODE, import_path(), *map(str, words)]
        done = await process.run(argv, timeout=math.inf, max_output=_OUTPUT_LIMIT, pass_fds=sorted(set(opened)))
    finally:
        for fd in set(opened):
            os.close(fd)
    found = _verdict(done)
    if not found.inodes:
        return found
    size, inodes = await blocking(_beside, directory)
    return replace(found, disk_bytes=found.disk_bytes + size, inodes=found.inodes + inodes)


def _beside(directory: Path) -> tuple[int, int]:
    sizes = [path.lstat().st_blocks * 512 for path in (directory, directory / TAR_LOG, directory / LISTING)]
    return sum(sizes), len(sizes)


def _absent(directory: Path, layer: Layer) -> list[str]:
    names = {FILES: stat.S_ISDIR, TAR_LOG: stat.S_ISREG, **({LISTING: stat.S_ISREG} if layer.listing else {})}
    missing = []
    for name, is_right in names.items():
        with contextlib.suppress(FileNotFoundError):
            if is_right((directory / name).lstat().st_mode):
                continue
        missing.append(f"{directory.name}/{name}")
    return missing


def _open(directory: Path, layer: Layer) -> tuple[int, int]:
    log = os.open(directory / TAR_LOG, os.O_RDONLY | os.O_CLOEXEC)
    if not layer.listing:
        return log, log
    try:
        return log, os.open(directory / LISTING, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        os.close(log)
        raise


def _verdict(done: process.Completed) -> Verdict:
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    if done.returncode != 0 or not lines or lines[-1] != "done":
        said = [*lines[-1:], *done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]]
        raise HostError(f"verifying ended with {done.returncode}: {said[-1] if said else 'it said nothing'}")
    words = [line.partition(" ")[::2] for line in lines]
    numbers = {key: int(value) for key, value in words if key in ("bytes", "inodes")}
    return Verdict([text for key, text in words if key == "problem"], numbers["bytes"], numbers["inodes"])
