"""Where a program is that an option names."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from bridge.errors import ConfigError

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def search_path() -> str:
    """The server's own PATH, or the usual one where it has none."""
    return os.environ.get("PATH", DEFAULT_PATH)


def find(name: str, search: str, *, field: str = "options.path") -> Path:
    """The absolute path of the program ``name``: absolute itself, or sought in ``search`` (as PATH). ConfigError names ``field``."""
    found = shutil.which(name, path=search)
    if found is None:
        where = "" if "/" in name else f" in {search}"
        raise ConfigError(f"{field}: there is no executable {name!r}{where}; install it or set the path")
    if not os.path.isabs(found):
        raise ConfigError(f"{field}: {name!r} must be an absolute path or a bare name")
    return Path(found)
