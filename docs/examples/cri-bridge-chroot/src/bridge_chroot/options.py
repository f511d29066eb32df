"""What `[runtime.handlers.NAME.options]` may hold for a handler with `plugin = "chroot"`."""

import sys

from pydantic import BaseModel, ConfigDict


class ChrootOptions(BaseModel):
    """One option, with a default: `plugin = "chroot"` is all that a handler needs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    python: str = sys.executable
    """The interpreter that runs the launcher: an absolute path. Why: the server's own is there for sure."""
