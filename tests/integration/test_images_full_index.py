"""A root filesystem is removed although the index can't be written, and the index follows when it can."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from bridge.errors import HostError
from bridge.images.catalogue import Catalogue
from bridge.testing.images import write_busybox_layout
from tests.integration.test_images_store import opened, target, wait_empty

__all__ = ["target"]  # the fixture

pytestmark = pytest.mark.root


async def test_the_row_of_a_removed_layer_follows_later(tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_busybox_layout(tmp_path / "layout")
    async with opened(tmp_path / "store", measure_seconds=0.05) as store:
        (image,) = await store.import_archive(tmp_path / "layout")
        await store.mount_rootfs("c", image.id, target)
        (target / "big").write_bytes(bytes(1 << 20))

        async def full(self: Catalogue, container: str) -> None:
            raise HostError("database index.db: database or disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(Catalogue, "drop_snapshot", full)
            await store.remove_rootfs("c", target)
            await store.remove_rootfs("c", target)
            assert not target.is_mount()
            await wait_empty(tmp_path / "store" / "snapshots")
            assert list(store.containers()) == ["c"]
        with anyio.fail_after(30):
            while list(store.containers()):
                await anyio.sleep(0.01)
