"""The database of records that is damaged, deleted or cut to nothing is rebuilt from its copy; without one a start is an empty one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bridge.core import state_file
from bridge.core.entities import Sandbox, SandboxState
from bridge.core.model import PodConfig, PodMetadata
from bridge.core.store import Store


def pod(ident: str) -> Sandbox:
    config = PodConfig(PodMetadata(ident, ident, "default"))
    return Sandbox(ident, config, "runc", "", SandboxState.READY, 1, "boot", ips=("10.0.0.1",))


@pytest.fixture
async def dirs(tmp_path: Path) -> tuple[Path, Path]:
    """State and run directory of a server that knew a pod and owed a detachment."""
    state, run = tmp_path / "state", tmp_path / "run"
    state.mkdir()
    run.mkdir()
    store = Store(await state_file.open_state(state, run))
    await store.add(pod("one"))
    await store.owe_detachment("gone", {"network": "n", "data": {}})
    await store._database.close()
    return state, run


async def known(state: Path, run: Path) -> tuple[list[str], list[str]]:
    store = Store(await state_file.open_state(state, run))
    try:
        await store.load()
        return sorted(store.sandboxes), sorted(store.detachments)
    finally:
        await store._database.close()


def damage(state: Path) -> None:
    (state / "state.db").write_bytes(b"this was a database" * 100)


def damage_one_page(state: Path) -> None:
    file = state / "state.db"
    data = bytearray(file.read_bytes())
    data[4096:8192] = b"\xff" * 4096
    file.write_bytes(data)


def delete(state: Path) -> None:
    (state / "state.db").unlink()


def cut(state: Path) -> None:
    (state / "state.db").write_bytes(b"")


def remove_directory(state: Path) -> None:
    shutil.rmtree(state)
    state.mkdir()


@pytest.mark.parametrize("lose", [damage, damage_one_page, delete, cut, remove_directory])
async def test_a_lost_database_is_rebuilt(dirs: tuple[Path, Path], lose) -> None:
    state, run = dirs
    lose(state)
    assert await known(state, run) == (["one"], ["gone"])
    assert len(state_file.set_aside(state)) == (lose in (damage, damage_one_page))
    assert await known(state, run) == (["one"], ["gone"])


@pytest.mark.parametrize("lose", [damage, delete])
async def test_with_the_copy_lost_too_a_start_is_an_empty_one(dirs: tuple[Path, Path], lose) -> None:
    state, run = dirs
    lose(state)
    (run / "state-copy.db").write_bytes(b"this was a copy" * 100)
    assert await known(state, run) == ([], [])
    delete(state)
    assert await known(state, run) == ([], []), "and its copy is sound again"


async def test_a_sound_database_counts_whatever_its_copy_says(dirs: tuple[Path, Path]) -> None:
    state, run = dirs
    (run / "state-copy.db").write_bytes(b"this was a copy" * 100)
    assert await known(state, run) == (["one"], ["gone"])
    delete(state)
    assert await known(state, run) == (["one"], ["gone"]), "the copy was made anew"
