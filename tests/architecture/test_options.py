"""No option without effect: every key of the schema is read where the parts get their settings."""

from __future__ import annotations

import re
from pathlib import Path

from bridge.config import Handler, Registry
from bridge.config_docs import entries, tables

SOURCE = Path(__file__).parents[2] / "src" / "bridge"
READERS = ("daemon.py", "daemon_settings.py", "daemon_status.py")


def test_every_key_is_used() -> None:
    text = "".join((SOURCE / name).read_text("utf-8") for name in READERS)
    unused = [
        ".".join(entry.key) for name, model in tables() for entry in entries(name, model) if not re.search(rf"\.{entry.key[-1]}\b", text)
    ]
    assert unused == []


def test_free_tables_are_covered() -> None:
    assert {model for _, model in tables()} >= {Handler, Registry}
