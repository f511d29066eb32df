"""kill -9 of a process that imports and removes images, at random moments: the next start finds a whole store."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import anyio
import pytest

from bridge.aio import Supervisor
from bridge.images.settings import ImageSettings
from bridge.images.store import ImageStore
from bridge.testing.images import Entry, Layout, tar

pytestmark = pytest.mark.root

_LOOP = """
import sys, anyio
sys.path[:0] = sys.argv[3].split(":")
from pathlib import Path
from bridge.aio import Supervisor
from bridge.images.settings import ImageSettings
from bridge.images.store import ImageStore

async def main():
    async with Supervisor() as supervisor, ImageStore.open(ImageSettings(Path(sys.argv[1])), supervisor) as store:
        print("open", flush=True)
        while True:
            await store.import_archive(Path(sys.argv[2]))
            print("in", flush=True)
            await store.remove("example.com/crash:0")
            await store.remove("example.com/crash:1")

anyio.run(main)
"""


async def check(root: Path, layout: Path) -> None:
    async with Supervisor() as supervisor, ImageStore.open(ImageSettings(root), supervisor) as store:
        for image in store.list():
            for chain_id in image.chain_ids:
                assert (root / "layers" / str(store._catalogue.layers[chain_id].id) / "fs").is_dir()
        known = {str(layer.id) for layer in store._catalogue.layers.values()}
        assert set(os.listdir(root / "layers")) == known
        with anyio.fail_after(30):
            while os.listdir(root / "tmp"):
                await anyio.sleep(0.01)
        images = await store.import_archive(layout)
        assert [len(image.chain_ids) for image in images] == [4, 4]
        for image in images:
            await store.remove(image.id)
        assert store.image_usage().used_bytes == 0


async def test_kill_at_any_moment(tmp_path: Path) -> None:
    random.seed(7)
    layers = [[tar([Entry(f"{i}-{n}-{f}", os.urandom(20_000)) for f in range(30)]) for n in range(3)] for i in range(2)]
    base = tar([Entry("base", os.urandom(500_000))])
    with Layout(tmp_path / "layout") as layout:
        for number in range(2):
            layout.image(f"example.com/crash:{number}", [base, *layers[number]])
    for _ in range(12):
        argv = [sys.executable, "-c", _LOOP, str(tmp_path / "store"), str(tmp_path / "layout"), ":".join(sys.path)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"open\n"
            time.sleep(random.uniform(0, 0.5))
            process.send_signal(signal.SIGKILL)
        await check(tmp_path / "store", tmp_path / "layout")
