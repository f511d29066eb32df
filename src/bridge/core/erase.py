"""Removing a directory of ours that may, after a crash, still have mounts below it."""

from __future__ import annotations

import errno
from pathlib import Path

from bridge.errors import HostError
from bridge.host import files, mounts


async def directory(path: Path) -> None:
    """Delete ``path`` with all in it; absent is success. Mounts below it are undone first, and only looked for if there are any.

    Listing the node's mounts takes milliseconds where hundreds of pods run, and a pod that ended well has none left.
    """
    try:
        await files.remove_tree(path)
    except HostError as exc:
        if exc.errno != errno.EBUSY:
            raise
        await mounts.unmount_tree(path)
        await files.remove_tree(path)
