"""Names without a registry (``busybox:1``): which full names they stand for, by registries.conf; Docker Hub's without one.

The file is read when the store opens and at each pull of a short name; lookups between answer from memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anyio.to_thread import run_sync

from bridge import log
from bridge.errors import ConfigError
from bridge.images import registries_conf
from bridge.images.reference import is_short
from bridge.images.registries_conf import RegistriesConf

_logger = log.get("images.short-names")


class ShortNames:
    """``path`` None: every short name is Docker Hub's."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._conf = RegistriesConf()

    async def load(self) -> None:
        """Read the file. A broken one is logged, and short names are Docker Hub's until a pull says what is wrong."""
        if self._path is None:
            return
        try:
            self._conf = await run_sync(registries_conf.load, self._path)
        except ConfigError as exc:
            _logger.warning("short names are taken as Docker Hub's: %s", exc)

    async def candidates(self, text: str) -> Sequence[str]:
        """The full names to try for ``text``, in order; itself when it is one. Raises ConfigError: broken file, or an ambiguous name."""
        if self._path is None or not is_short(text):
            return [text]
        self._conf = await run_sync(registries_conf.load, self._path)
        return self._conf.candidates(text) or [text]

    def meanings(self, text: str) -> Sequence[str]:
        """What ``text`` may have been pulled as, from memory: its candidates, then Docker Hub's reading of it."""
        if self._path is None or not is_short(text):
            return [text]
        try:
            return [*self._conf.candidates(text), text]
        except ConfigError:  # ambiguous: then nothing was pulled by it but through Docker Hub
            return [text]
