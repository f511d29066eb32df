"""The records of pods and containers as they are on disk, read without a server and without changing a byte."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bridge.core import records, state_file
from bridge.core.entities import Container, Sandbox
from bridge.core.store import MIGRATIONS
from bridge.errors import CorruptData, HostError


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a database of records says. ``unreadable`` maps the ids of records that this release can't read to why.

    ``set_aside`` are records that a server could not read, as (id, kind, why). ``faults`` is what is wrong with the file itself.
    """

    path: Path
    sandboxes: Mapping[str, Sandbox] = field(default_factory=dict)
    containers: Mapping[str, Container] = field(default_factory=dict)
    detachments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)
    set_aside: Sequence[tuple[str, str, str]] = ()
    format: int = 0
    faults: Sequence[str] = ()

    @property
    def owners(self) -> frozenset[str]:
        """Ids of which there is a record, readable or not, or a debt."""
        return frozenset((*self.sandboxes, *self.containers, *self.detachments, *self.unreadable))

    @property
    def unremoved(self) -> Mapping[str, str]:
        """Ids of what was to be removed and is not yet, with the reason."""
        pods = {pod.id: pod.unremoved for pod in self.sandboxes.values() if pod.unremoved}
        return pods | {each.id: each.unremoved for each in self.containers.values() if each.unremoved}

    def about(self, ident: str) -> str:
        """What a person calls the object ``ident``; "" when there is no record of it."""
        container = self.containers.get(ident)
        sandbox = self.sandboxes.get(ident if container is None else container.sandbox_id)
        pod = "" if sandbox is None else f"pod {sandbox.config.metadata.namespace}/{sandbox.config.metadata.name}"
        return pod if container is None else f"container {container.config.metadata.name} of {pod or container.sandbox_id[:13]}"


def read(state_dir: Path, run_dir: Path) -> Recorded:
    """The records of the server with these directories; those of the copy where the database is gone. Raises CorruptData, HostError."""
    path, copy = state_dir / state_file.NAME, run_dir / state_file.COPY
    if not path.exists() and copy.exists():
        path = copy
    return read_file(path) if path.exists() else Recorded(path)


def read_file(path: Path, *, thorough: bool = False) -> Recorded:
    """What is in one file; with ``thorough`` every page of it is looked at. Raises CorruptData, HostError."""
    try:
        connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, isolation_level=None, timeout=5)
        try:
            return _read(connection, path, thorough)
        finally:
            connection.close()
    except sqlite3.DatabaseError as exc:
        if isinstance(exc, sqlite3.OperationalError):
            raise HostError(f"can't read {path}: {exc}") from exc
        raise CorruptData(f"{path} is damaged: {exc}") from exc


def _read(db: sqlite3.Connection, path: Path, thorough: bool) -> Recorded:
    db.execute("BEGIN")  # one moment for all tables
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    check = "integrity_check(20)" if thorough else "quick_check(1)"
    faults = [str(row[0]) for row in db.execute(f"PRAGMA {check}") if row[0] != "ok"]
    if version == 0 or version > len(MIGRATIONS):
        return Recorded(path, format=version, faults=faults)
    sandboxes: dict[str, Sandbox] = {}
    containers: dict[str, Container] = {}
    unreadable: dict[str, str] = {}
    for ident, body in db.execute("SELECT id, body FROM sandboxes"):
        try:
            sandboxes[ident] = records.loads(Sandbox, body)
        except CorruptData as exc:
            unreadable[ident] = str(exc)
    for ident, body in db.execute("SELECT id, body FROM containers"):
        try:
            containers[ident] = records.loads(Container, body)
        except CorruptData as exc:
            unreadable[ident] = str(exc)
    debts = {ident: json.loads(body) for ident, body in db.execute("SELECT sandbox_id, body FROM detachments")}
    aside = [(str(ident), str(kind), str(why)) for ident, kind, why in db.execute("SELECT id, kind, why FROM set_aside")]
    return Recorded(path, sandboxes, containers, debts, unreadable, aside, version, faults)
