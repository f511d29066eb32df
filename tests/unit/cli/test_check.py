"""What ``cri-bridge check`` makes of state directories: sound, damaged, gone, of a newer release, with records set aside."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from bridge.cli import check, image_index
from bridge.cli.findings import Finding, State
from bridge.config import Config
from bridge.core.entities import Sandbox, SandboxState
from bridge.core.model import PodConfig, PodMetadata
from bridge.core.records import dumps
from bridge.core.store import MIGRATIONS
from bridge.host.database_copy import restore
from bridge.images import schema


def config(root: Path) -> Config:
    whole = Config()
    return whole.model_copy(update={"server": whole.server.model_copy(update={"state_dir": root / "state", "run_dir": root / "run"})})


def records(root: Path) -> dict[str, Finding]:
    return {found.name: found for found in check._records(config(root))}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A sound, empty database and its copy."""
    for name in ("state", "run"):
        (tmp_path / name).mkdir()
    db = sqlite3.connect(tmp_path / "state" / "state.db")
    db.executescript(f"{MIGRATIONS[0]}; PRAGMA user_version=1")
    db.close()
    restore(tmp_path / "state" / "state.db", tmp_path / "run" / "state-copy.db")
    return tmp_path


def execute(root: Path, sql: str) -> None:
    db = sqlite3.connect(root / "state" / "state.db")
    db.executescript(sql)
    db.close()


def test_sound_records(root: Path) -> None:
    assert {name: found.state for name, found in records(root).items()} == {"state.db": State.OK, "copy": State.OK}


def test_damaged_records_and_one_set_aside(root: Path) -> None:
    (root / "state" / "state.db").write_bytes(b"no database" * 1000)
    (root / "state" / "state.db.corrupt-17").write_bytes(b"")
    found = records(root)
    assert (found["state.db"].state, found["damaged file"].state) == (State.MISSING, State.ADVICE)
    assert "rebuilt from what runs" in found["state.db"].mend


def test_a_database_that_is_gone(root: Path) -> None:
    (root / "state" / "state.db").unlink()
    assert records(root)["state.db"].state is State.MISSING
    assert "rebuilds it" in records(root)["state.db"].detail
    (root / "run" / "state-copy.db").unlink()
    assert records(root)["state.db"].state is State.ADVICE, "as before the first start"


def test_records_that_can_not_be_read_and_that_were_set_aside(root: Path) -> None:
    execute(root, "INSERT INTO sandboxes VALUES ('new', 'k', '{}'); INSERT INTO set_aside VALUES ('old', 'containers', '{', 'so')")
    found = records(root)
    assert found["record new"].state is State.MISSING
    assert found["record old"].detail == "was set aside from containers: so"


def test_what_could_not_be_removed_is_named(root: Path) -> None:
    config = PodConfig(PodMetadata("web", "uid", "shop"))
    body = dumps(Sandbox("a" * 64, config, "runc", "", SandboxState.REMOVING, 1, "boot", unremoved="umount: busy"))
    execute(root, f"INSERT INTO sandboxes VALUES ('{'a' * 64}', 'k', '{body}')")
    found = records(root)[f"remains {'a' * 13}"]
    assert (found.state, found.detail) == (State.ADVICE, "pod shop/web could not be removed: umount: busy")


def test_a_newer_format_and_a_missing_copy(root: Path) -> None:
    execute(root, "PRAGMA user_version=99")
    (root / "run" / "state-copy.db").unlink()
    found = records(root)
    assert (found["state.db"].state, found["copy"].state) == (State.MISSING, State.ADVICE)
    assert "newer release" in found["state.db"].detail


def test_the_image_index_without_a_server(tmp_path: Path) -> None:
    assert image_index.check(tmp_path).state is State.ADVICE
    db = sqlite3.connect(tmp_path / "index.db")
    db.executescript(";".join(schema.MIGRATIONS))
    db.execute(
        "INSERT INTO layers (id, chain_id, diff_id, disk_bytes, inodes, tar_bytes, exact, created_ns, verified_ns) "
        "VALUES (7, 'c', 'd', 1, 1, 1, 1, 1, 1)"
    )
    db.commit()
    db.close()
    assert image_index.check(tmp_path).state is State.MISSING, "no directory of layers"
    (tmp_path / "layers" / "7").mkdir(parents=True)
    assert image_index.check(tmp_path).state is State.OK
    (tmp_path / "layers" / "7").rmdir()
    assert "layer 7 has no directory" in image_index.check(tmp_path).detail
    (tmp_path / "index.db").write_bytes(b"no database" * 1000)
    assert image_index.check(tmp_path).state is State.MISSING
