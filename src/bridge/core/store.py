"""The only owner of sandbox and container records: in memory for readers, in SQLite for the next start.

``apply(id, event, **facts)`` looks the event up in the transition table, makes the new object, commits it, then publishes
it and tells the change feed. Readers never wait and never lock: they read dicts of frozen objects. Writers of one object
queue on that object's own lock for the length of one SQLite commit, nothing longer. What a phase is about to do is committed first
or refused; a fact that the disk won't take is published all the same and written later (see late_writes).
"""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio

from bridge import log
from bridge.aio import Broadcast
from bridge.core import lifecycle, records
from bridge.core.entities import Container, Sandbox
from bridge.core.late_writes import LateWrites
from bridge.errors import AlreadyExists, CorruptData, InvalidRequest, NotFound
from bridge.host.database import Database

_logger = log.get("core.store")
Entity = TypeVar("Entity", Sandbox, Container)

MIGRATIONS = (
    """
    CREATE TABLE sandboxes (id TEXT PRIMARY KEY, name_key TEXT NOT NULL UNIQUE, body TEXT NOT NULL) STRICT;
    CREATE TABLE containers (
        id TEXT PRIMARY KEY, sandbox_id TEXT NOT NULL,
        name_key TEXT NOT NULL UNIQUE, body TEXT NOT NULL) STRICT;
    CREATE INDEX containers_by_sandbox ON containers(sandbox_id);
    CREATE TABLE detachments (sandbox_id TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT;
    CREATE TABLE set_aside (id TEXT, kind TEXT NOT NULL, body TEXT NOT NULL, why TEXT NOT NULL) STRICT;
    """,
)
"""``detachments`` are CNI attachments whose DEL has yet to succeed; ``set_aside`` keeps unreadable records for a person."""


@dataclass(frozen=True, slots=True)
class Change:
    """One published change: ``after`` None means the record is gone."""

    event: str
    before: Sandbox | Container | None
    after: Sandbox | Container | None


class Store:
    """See the module docstring. ``sandboxes`` and ``containers`` are read-only for everyone else."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.sandboxes: dict[str, Sandbox] = {}
        self.containers: dict[str, Container] = {}
        self.detachments: dict[str, Mapping[str, Any]] = {}
        self.changes: Broadcast[Change] = Broadcast()
        self.observer: Callable[[Change], None] | None = None
        """Told of each change as it is committed, before anybody else can act; must not raise (see core/events)."""
        self._names: dict[str, str] = {}
        self._members: dict[str, dict[str, None]] = {}
        self._locks: dict[str, anyio.Lock] = {}
        self.late = LateWrites(self._write)

    async def load(self) -> None:
        """Read all records; one that can't be read is set aside and logged, never fatal (design promise 2)."""
        rows = await self._database.read(_read_all)
        for ident, body in rows[0]:
            await self._load_one(Sandbox, "sandboxes", ident, body)
        for ident, body in rows[1]:
            await self._load_one(Container, "containers", ident, body)
        for ident, body in rows[2]:
            self.detachments[ident] = json.loads(body)

    async def _load_one(self, kind: type[Sandbox] | type[Container], table: str, ident: str, body: str) -> None:
        try:
            entity: Sandbox | Container = records.loads(kind, body)
            if isinstance(entity, Container) and entity.sandbox_id not in self.sandboxes:
                raise CorruptData(f"its sandbox {entity.sandbox_id} has no readable record")
        except CorruptData as exc:
            _logger.error("record %s of %s set aside: %s", ident, table, exc)
            why = str(exc)
            await self._write(lambda db: _set_aside(db, table, ident, body, why))
            return
        self._publish(entity)

    # --- reading

    def sandbox(self, ident: str) -> Sandbox:
        """The sandbox with this id or unique id prefix. Raises NotFound, or InvalidRequest when ambiguous."""
        return _resolve(self.sandboxes, ident, "sandbox")

    def container(self, ident: str) -> Container:
        """The container with this id or unique id prefix. Raises NotFound, or InvalidRequest when ambiguous."""
        return _resolve(self.containers, ident, "container")

    def named(self, name_key: str) -> str | None:
        """Id of the live object that holds ``name_key``."""
        return self._names.get(name_key)

    def members(self, sandbox_id: str) -> tuple[Container, ...]:
        """Containers of a sandbox, oldest first."""
        return tuple(self.containers[ident] for ident in self._members.get(sandbox_id, ()))

    # --- writing

    async def add(self, entity: Sandbox | Container) -> None:
        """Journal a new object (phase creating). Raises AlreadyExists when its name is taken."""
        table = "sandboxes" if isinstance(entity, Sandbox) else "containers"
        holder = self._names.get(entity.name_key)
        if holder is not None:
            raise AlreadyExists(f"name {entity.name_key!r} belongs to {table[:-1]} {holder}")
        self._names[entity.name_key] = entity.id
        if self.late:
            await self.late.settle()  # a name that was freed may still be held in the database
        try:
            await self._write(lambda db: _insert(db, entity))
        except BaseException:
            self._names.pop(entity.name_key, None)
            raise
        self._publish(entity)
        self._tell(Change("added", None, entity))

    async def apply_sandbox(self, ident: str, event: str, **facts: Any) -> Sandbox:
        """Apply ``event`` to a sandbox; ``facts`` are further fields to set. Raises IllegalTransition, NotFound."""
        return await self._apply(self.sandboxes, lifecycle.SANDBOX, f"sandbox {ident}", ident, event, facts)

    async def apply_container(self, ident: str, event: str, **facts: Any) -> Container:
        """Apply ``event`` to a container; ``facts`` are further fields to set. Raises IllegalTransition, NotFound."""
        return await self._apply(self.containers, lifecycle.CONTAINER, f"container {ident}", ident, event, facts)

    async def _apply(
        self, entities: Mapping[str, Entity], table: Mapping[Any, Any], what: str, ident: str, event: str, facts: Mapping[str, Any]
    ) -> Entity:
        async with self._lock(ident):
            before = entities.get(ident)
            if before is None:
                raise NotFound(f"{what} not found")
            state = lifecycle.follow(table, what, before.state, event)
            after = dataclasses.replace(before, state=state, revision=before.revision + 1, **facts)
            await self._commit(event, before, after)
            return after

    async def remove(self, ident: str) -> None:
        """Drop a record; absent is success. A sandbox's members must be gone before it."""
        async with self._lock(ident):
            entity = self.sandboxes.get(ident) or self.containers.get(ident)
            # Also when memory has none: an insert may have reported a failure and happened all the same.
            await self.late.commit(ident, lambda db: _delete(db, ident), fact=True)
            if entity is None:
                return
            self._names.pop(entity.name_key, None)
            if isinstance(entity, Container):
                self.containers.pop(ident, None)
                self._members.get(entity.sandbox_id, {}).pop(ident, None)
            else:
                self.sandboxes.pop(ident, None)
                self._members.pop(ident, None)
            self._tell(Change("removed", entity, None))
        self._locks.pop(ident, None)

    async def owe_detachment(self, sandbox_id: str, attachment: Mapping[str, Any]) -> None:
        """Remember a CNI DEL that failed, so that it is retried also after a restart."""
        body = json.dumps(attachment)
        await self._write(lambda db: db.execute("INSERT OR REPLACE INTO detachments VALUES (?, ?)", (sandbox_id, body)))
        self.detachments[sandbox_id] = attachment

    async def settle_detachment(self, sandbox_id: str) -> None:
        """The DEL has succeeded."""
        if sandbox_id in self.detachments:
            await self._write(lambda db: db.execute("DELETE FROM detachments WHERE sandbox_id = ?", (sandbox_id,)))
            self.detachments.pop(sandbox_id, None)

    async def _write(self, work: Callable[[sqlite3.Connection], object]) -> None:
        # A commit takes well under a millisecond. Left half-waited by a cancelled caller, disk and memory would differ.
        with anyio.CancelScope(shield=True):
            await self._database.write(work)

    def _lock(self, ident: str) -> anyio.Lock:
        lock = self._locks.get(ident)
        if lock is None:
            lock = self._locks[ident] = anyio.Lock(fast_acquire=True)
        return lock

    async def _commit(self, event: str, before: Entity, after: Entity) -> None:
        body = records.dumps(after)
        table = "sandboxes" if isinstance(after, Sandbox) else "containers"
        # Only what is to go for good changes its name; else the name's index would be written anew by each change.
        statement = f"UPDATE {table} SET body = ?{', name_key = id' if after.unremoved else ''} WHERE id = ?"  # noqa: S608
        await self.late.commit(after.id, lambda db: db.execute(statement, (body, after.id)), fact=event in lifecycle.FACTS)
        if after.name_key != before.name_key:
            self._names.pop(before.name_key, None)
        self._publish(after)
        self._tell(Change(event, before, after))

    def _tell(self, change: Change) -> None:
        if self.observer is not None:
            self.observer(change)
        self.changes.publish(change)

    def _publish(self, entity: Sandbox | Container) -> None:
        self._names[entity.name_key] = entity.id
        if isinstance(entity, Sandbox):
            self.sandboxes[entity.id] = entity
            self._members.setdefault(entity.id, {})
        else:
            self.containers[entity.id] = entity
            self._members.setdefault(entity.sandbox_id, {})[entity.id] = None


def _resolve(table: Mapping[str, Entity], ident: str, what: str) -> Entity:
    found = table.get(ident)
    if found is not None:
        return found
    if not ident:
        raise InvalidRequest("must not be empty", field=f"{what}_id")
    matches = [entity for key, entity in table.items() if key.startswith(ident)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise InvalidRequest(f"{what} id prefix {ident!r} is ambiguous: {', '.join(sorted(m.id[:13] for m in matches)[:5])}")
    raise NotFound(f"{what} {ident} not found")


def _read_all(db: sqlite3.Connection) -> tuple[Iterable[Any], Iterable[Any], Iterable[Any]]:
    return (
        db.execute("SELECT id, body FROM sandboxes ORDER BY rowid").fetchall(),
        db.execute("SELECT id, body FROM containers ORDER BY rowid").fetchall(),
        db.execute("SELECT sandbox_id, body FROM detachments").fetchall(),
    )


def _insert(db: sqlite3.Connection, entity: Sandbox | Container) -> None:
    body = records.dumps(entity)
    if isinstance(entity, Sandbox):
        db.execute("INSERT INTO sandboxes VALUES (?, ?, ?)", (entity.id, entity.name_key, body))
    else:
        db.execute("INSERT INTO containers VALUES (?, ?, ?, ?)", (entity.id, entity.sandbox_id, entity.name_key, body))


def _delete(db: sqlite3.Connection, ident: str) -> None:
    db.execute("DELETE FROM containers WHERE id = ?", (ident,))
    db.execute("DELETE FROM sandboxes WHERE id = ?", (ident,))


def _set_aside(db: sqlite3.Connection, table: str, ident: str, body: str, why: str) -> None:
    db.execute("INSERT INTO set_aside VALUES (?, ?, ?, ?)", (ident, table, body, why))
    db.execute(f"DELETE FROM {table} WHERE id = ?", (ident,))  # noqa: S608
